"""Logs: readable lines on a console, JSON for machines, ids on every line."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from flask import Flask, Response, g, request
from structlog.typing import Processor

# No raw token or address reaches the log, whoever writes the line: gunicorn quotes a request that it cannot parse,
# PostgreSQL the row that violates a constraint.
# For each: a character that it always contains, which is quick to search for; its pattern; its replacement.
# Strangers control parts of these lines, so an address may only match from the start of a word: trying every letter
# of a 15 kB word takes seconds.
TOKENS = ("/", re.compile(r"(/(?:verify|reset|account/email/confirm|account/email/revoke)/)[^\s'\"]+"), r"\1<token>")
ADDRESSES = ("@", re.compile(r"(?<![^\s'\"<>=()])[^\s'\"<>=()]+@[^\s'\"<>)]+"), "<address>")

SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# Green, blue, yellow, red.
STATUS_COLORS = {"2": "32", "3": "34", "4": "33", "5": "31"}

# What every page loads.
UNLOGGED = {"/static/<path:filename>", "/theme.css", "/icon", "/apple-touch-icon.png", "/dev/mailbox"}
# Probes, and what our open pages ask for repeatedly or while somebody types: only failures are news.
LOGGED_WHEN_WRONG = {
    "/livez",
    "/readyz",
    "/metrics",
    "/signup/sent/progress",
    "/account/email/progress",
    "/signup/strength",
    "/reset/strength",
    "/verify/strength",
    "/account/password/strength",
}


def init_app(app: Flask) -> None:
    configure(app.config)
    app.before_request(_bind_request_id)
    app.after_request(_log_request)
    app.teardown_request(lambda _error: structlog.contextvars.clear_contextvars())


def configure(settings: Mapping[str, Any]) -> None:
    """Send every logger of this process, ours and the libraries', to stderr in one format."""
    renderer: list[Any]
    if settings["LOG_FORMAT"] == "json":
        renderer = [structlog.processors.JSONRenderer()]
    else:
        renderer = [for_people(has_colors=wants_colors(), is_trial=settings["APP_ENV"] == "development")]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                leave_out(TOKENS) if settings["LOG_ADDRESSES"] else leave_out(TOKENS, ADDRESSES),
                *renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings["LOG_LEVEL"].upper())
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    # Huey logs every scheduled task at info; our own events do so with the email's id.
    logging.getLogger("huey").setLevel(logging.WARNING)


def wants_colors() -> bool:
    """Return whether to color lines: on a terminal, or if a parent that forwards them sets FORCE_COLOR."""
    return not os.environ.get("NO_COLOR") and (sys.stderr.isatty() or bool(os.environ.get("FORCE_COLOR")))


def for_people(*, has_colors: bool, is_trial: bool) -> Processor:
    """Return the processor that renders a line for the console.

    With `is_trial`, lines have no timestamp, and a request is only its status, method, rule and duration.
    """
    # The pretty tracebacks show local variables, which may hold passwords.
    plain = structlog.dev.plain_traceback
    render = structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=plain)

    def process(logger: object, method: str, fields: MutableMapping[str, Any]) -> str:
        if is_trial:
            fields.pop("timestamp", None)
            if fields["event"] == "request" and fields.get("logger") == __name__:
                return _asked_and_answered(fields, has_colors=has_colors)
        return render(logger, method, fields)

    return process


def _asked_and_answered(fields: Mapping[str, Any], *, has_colors: bool) -> str:
    status = str(fields["status"])
    if has_colors:
        status = f"\033[{STATUS_COLORS.get(status[0], '0')}m{status}\033[0m"
    took = "" if fields["duration"] is None else f" {fields['duration'] * 1000:.0f} ms"
    return f"{status} {fields['method']} {fields['rule'] or '(no such page)'}{took}"


def leave_out(*secrets: tuple[str, re.Pattern[str], str]) -> Processor:
    """Return a processor that replaces these secrets in every field of a line."""

    def process(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in fields.items():
            if isinstance(value, str):
                for mark, secret, substitute in secrets:
                    if mark in value:
                        value = secret.sub(substitute, value)  # noqa: PLW2901 - one after the other
                fields[name] = value
        return fields

    return process


def _bind_request_id() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if re.fullmatch(r"[A-Za-z0-9-]{1,64}", given) else uuid.uuid4().hex
    g.begun = time.monotonic()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _log_request(response: Response) -> Response:
    if "request_id" in g:
        response.headers["X-Request-ID"] = g.request_id
    # The rule, never the path: a path may contain a token.
    rule = request.url_rule.rule if request.url_rule else None
    # Only for operators: anyone can send the header.
    is_live = request.blueprint == "ops" and request.method == "GET" and "X-Live" in request.headers
    is_routine = is_live or rule in LOGGED_WHEN_WRONG
    if rule not in UNLOGGED and (response.status_code >= 400 or not is_routine):
        structlog.get_logger(__name__).info(
            "request",
            method=request.method,
            rule=rule,
            status=response.status_code,
            duration=round(time.monotonic() - g.begun, 3) if "begun" in g else None,
        )
    return response
