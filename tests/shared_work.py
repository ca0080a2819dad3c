"""Work that comes out the same for every app of this process, done once: each test has an app of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from jinja2 import FileSystemBytecodeCache
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from werkzeug.routing import Rule


def share(folder: Path) -> None:
    Flask.jinja_options = {"bytecode_cache": FileSystemBytecodeCache(str(folder))}
    share_statements()
    share_routes()
    # What was imported and collected stays: the collector need not go through it again and again.
    gc.collect()
    gc.freeze()


class Statements(dict[Any, Any]):
    """Compiled statements, by the kind of database that they are for rather than by the app's engine."""

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


def share_routes() -> None:
    """Let rules share the functions that Werkzeug writes and compiles to build their URLs."""
    builders: dict[Any, Any] = {}
    compiled: Callable[..., Any] = Rule._compile_builder

    def compile_once(rule: Rule, append_unknown: bool = True) -> Any:  # noqa: FBT001, FBT002 - Werkzeug's
        key = (rule.rule, tuple(rule._trace), repr(rule.defaults), append_unknown)
        if key not in builders:
            builders[key] = compiled(rule, append_unknown)
        return builders[key]

    Rule._compile_builder = compile_once  # type: ignore[assignment, method-assign]
