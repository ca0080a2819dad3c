"""The queue of hints: Huey bound to the app, with signed JSON messages and a breaker in front of its broker."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog
from flask import Flask
from huey.api import Huey, Task
from huey.consumer import Consumer
from huey.signals import SIGNAL_COMPLETE, SIGNAL_ERROR
from huey.storage import BaseStorage, SqliteStorage

from webapp.db import engines, outages
from webapp.queue import storage
from webapp.queue.broker_breaker import Breaker, BrokerDown
from webapp.queue.signed_json import SignedJSON

log = structlog.get_logger(__name__)

# An idle SQLite queue is polled: this bounds how long a task waits to be seen.
POLL_SECONDS = 0.5

# How long a consumer that is told to stop waits for its workers: longer than an email may still take by then.
STOP_SECONDS = 8.0
Companion = Callable[[threading.Event], None]


class FlaskHuey(Huey):
    """Huey whose storage comes from the app's settings, and whose tasks run in the app's context."""

    app: Flask

    def __init__(self) -> None:
        self.companions: list[Companion] = []
        self.stop_hooks: list[Callable[[], None]] = []
        self.workers = 1
        # Names of tasks that only wake a worker up; it keeps going while there is work.
        self.hints: set[str] = set()
        super().__init__(results=False)
        self.signal(SIGNAL_COMPLETE)(_log_complete)
        self.signal(SIGNAL_ERROR)(_log_error)

    def init_app(self, app: Flask) -> None:
        self.app = app
        self.name = "signup"
        self.breaker = Breaker()
        self.serializer = SignedJSON([*app.config["SECRET_KEY_FALLBACKS"], app.config["SECRET_KEY"]])
        self.storage = self.create_storage()
        app.extensions["huey"] = self

    def create_storage(self, timeout: float = storage.WEB_TIMEOUT) -> BaseStorage | None:
        """Return the storage, or None while no app is bound."""
        if not hasattr(self, "app"):
            return None
        return storage.create(self.name, self.app.config, timeout)

    def companion(self, run: Companion) -> Companion:
        """Register a function that runs beside the workers, in a thread of each consumer, until its event is set."""
        self.companions.append(run)
        return run

    def before_stop(self, run: Callable[[], None]) -> Callable[[], None]:
        """Register a function to call when a consumer is told to stop, before it waits for its workers."""
        self.stop_hooks.append(run)
        return run

    def waiting(self) -> int:
        """Return how many messages wait for a worker. Raises BrokerDown."""
        with self.breaker:
            count: int = self.pending_count()
            if isinstance(self.storage, storage.RedisQueue):
                self.storage.write()
        self.breaker.wrote()
        return count

    def hints_waiting(self, limit: int) -> int:
        """Return how many of the next `limit` messages are hints. Raises BrokerDown."""
        with self.breaker:
            return sum(task.name in self.hints for task in self.pending(limit))

    def enqueue(self, task: Task) -> None:
        """Queue the task, or schedule it until it is due. Raises BrokerDown."""
        with self.breaker:
            if self.ready_to_run(task):
                super().enqueue(task)
            else:
                # Huey itself would first wake a worker up, only for it to schedule the task.
                self.add_schedule(task)
        self.breaker.wrote()

    def dequeue(self) -> Task | None:
        if not outages.of(self.app).may_try():
            # A hint taken while the database is away would be lost.
            time.sleep(POLL_SECONDS)
            return None
        try:
            with self.breaker:
                return super().dequeue()
        except BrokerDown:
            # The breaker has logged it. A worker that blocks on its queue would ask again at once, so it rests here.
            time.sleep(POLL_SECONDS)
            return None

    def read_schedule(self, timestamp: datetime | None = None) -> list[Task]:
        """Return tasks that are due, but only one hint for each worker: that takes care of the other hints."""
        try:
            with self.breaker:
                due: list[Task] = super().read_schedule(timestamp)
        except BrokerDown:
            return []
        hints = [task for task in due if task.name in self.hints]
        for hint in hints[self.workers :]:
            self._emit(SIGNAL_COMPLETE, hint)
        return [task for task in due if task.name not in self.hints] + hints[: self.workers]

    # We revoke no tasks, and asking whether this one was would lose it if the broker went down just then.

    def is_revoked(self, task: Task, timestamp: datetime | None = None, peek: bool = True) -> bool:  # noqa: ARG002, FBT001, FBT002 - Huey's signature
        return False

    def delete(self, key: str) -> bool:  # noqa: ARG002 - Huey's signature
        return False

    def execute(self, task: Task, timestamp: datetime | None = None) -> Any:
        with self.app.app_context(), structlog.contextvars.bound_contextvars(task_id=task.id):
            return super().execute(task, timestamp)

    def create_consumer(self, **options: Any) -> FlaskConsumer:
        # huey_consumer has just given Huey's logger a handler with a format of its own; ours is on the root.
        logging.getLogger("huey").handlers.clear()
        logging.getLogger("huey").setLevel(logging.WARNING)
        logging.getLogger("huey").addFilter(outages.without_outages)
        engines.refuse_unsuitable(self.app.config)
        self.storage = self.create_storage(storage.WORKER_TIMEOUT)
        if isinstance(self.storage, SqliteStorage):
            options["max_delay"] = min(options.get("max_delay", POLL_SECONDS), POLL_SECONDS)
        self.workers = options.get("workers", self.workers)
        options["shutdown_timeout"] = options.get("shutdown_timeout") or STOP_SECONDS
        return FlaskConsumer(self, **options)


class FlaskConsumer(Consumer):
    """Huey's consumer, with companions that start and stop with it."""

    def start(self) -> None:
        super().start()
        self.companion_threads = [
            threading.Thread(target=run, args=[self.stop_flag], name=run.__name__, daemon=True)
            for run in self.huey.companions
        ]
        for thread in self.companion_threads:
            thread.start()
        log.info("worker_started", workers=self.workers)

    def stop(self, graceful: bool = False) -> None:  # noqa: FBT001, FBT002 - Huey's signature
        self.stop_flag.set()
        # One deadline for all: a locked database may hold up workers and companions alike.
        deadline = time.monotonic() + STOP_SECONDS
        for run in self.huey.stop_hooks:
            run()
        super().stop(graceful)
        if graceful:
            for thread in self.companion_threads:
                thread.join(max(0, deadline - time.monotonic()))
        log.info("worker_stopped", graceful=graceful)


def _log_complete(_signal: str, task: Task) -> None:
    log.info("processed task", **fields(task))


def _log_error(_signal: str, task: Task, error: Exception) -> None:
    log.error("process task failed", **fields(task), error=f"{type(error).__name__}: {error}")


def fields(task: Task) -> dict[str, Any]:
    """Return a task's log fields; the email's id is separate, so that it matches the log lines of its sending."""
    about = {name: task.kwargs[name] for name in ("email_id",) if name in task.kwargs}
    return {"task": task.name, "payload": payload(task), **about}


def payload(task: Task) -> str:
    """Return the task's arguments as one line of JSON."""
    return json.dumps({"args": task.args, **task.kwargs}) if task.args else json.dumps(task.kwargs)
