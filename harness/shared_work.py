"""Work with the same result for every app in this process, done once: each test has its own app."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import redis.utils
from flask import Flask
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from werkzeug.routing import Rule


def share(folder: Path) -> None:
    share_templates(folder)
    share_statements()
    share_routes()
    share_certificates()
    share_versions()
    # Imported modules and collected tests stay: the garbage collector need not scan them again and again, nor look for
    # garbage as often as in a process that must stay small.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def share_templates(folder: Path) -> None:
    Flask.jinja_options = {"bytecode_cache": FileSystemBytecodeCache(str(folder))}


class Statements(dict[Any, Any]):
    """Compiled statements, keyed by the kind of database rather than by the app's engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(self._by_kind(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(self._by_kind(key), compiled)

    def _by_kind(self, key: Any) -> Any:
        dialect, *statement = key
        return (dialect.name, dialect.driver, *statement)


def share_statements() -> None:
    statements = Statements()

    @event.listens_for(Engine, "engine_connect")
    def on_connect(connection: Connection) -> None:
        connection.execution_options(compiled_cache=statements)


def share_certificates() -> None:
    """Let HTTP clients share what they trust, which takes longer to load than most requests take."""
    httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)  # type: ignore[attr-defined]


def share_versions() -> None:
    """Let Redis connections share their library's version, for which each reads the library's list of files."""
    redis.utils.get_lib_version = cache(redis.utils.get_lib_version)


def share_routes() -> None:
    """Let rules share the functions that Werkzeug generates and compiles to build their URLs."""
    builders: dict[Any, Any] = {}
    compiled: Callable[..., Any] = Rule._compile_builder

    def compile_once(rule: Rule, append_unknown: bool = True) -> Any:  # noqa: FBT001, FBT002 - Werkzeug's
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in builders:
            builders[key] = compiled(rule, append_unknown)
        return builders[key]

    Rule._compile_builder = compile_once  # type: ignore[assignment, method-assign]
