"""Heartbeats of the consumers: which ones are alive."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, String, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import Model, db
from webapp.db.clock import db_now
from webapp.version import LONGEST, version

# A consumer beats every BEAT_SECONDS, and counts as alive until it has missed several.
BEAT_SECONDS = 10.0
ALIVE_SECONDS = 30.0
FORGET_SECONDS = 86400.0

START_WORKER = "huey_consumer huey_worker.huey -w 4 -g TERM"

HOST = socket.gethostname()[:60]


def new_name() -> str:
    """Return a name for this process, with a random part because pids are reused."""
    return f"{HOST}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


NAME = new_name()


class WorkerHeartbeat(Model):
    """One consumer process, and when it was last seen."""

    __tablename__ = "worker_heartbeats"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    host: Mapped[str] = mapped_column(String(60))
    pid: Mapped[int]
    version: Mapped[str | None] = mapped_column(String(LONGEST))
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


def beat(name: str) -> None:
    """Record that this process is alive. The caller commits."""
    seen = db.session.scalar(
        update(WorkerHeartbeat)
        .where(WorkerHeartbeat.name == name)
        .values(seen_at=db_now())
        .returning(WorkerHeartbeat.name)
    )
    if seen is None:
        host, pid, _ = name.split(":")
        times = {"started_at": db_now(), "seen_at": db_now()}
        db.session.add(WorkerHeartbeat(name=name, host=host, pid=int(pid), version=version(), **times))
        old = select(WorkerHeartbeat.name).where(WorkerHeartbeat.seen_at < db_now(-FORGET_SECONDS))
        # Another consumer that starts at the same time deletes them too.
        old = old.with_for_update(skip_locked=True)
        db.session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.name.in_(old)))


def leave(name: str) -> None:
    """Delete the heartbeat of a process that shut down cleanly. The caller commits."""
    db.session.execute(delete(WorkerHeartbeat).where(WorkerHeartbeat.name == name))


def alive() -> Sequence[WorkerHeartbeat]:
    return db.session.scalars(select(WorkerHeartbeat).where(is_alive()).order_by(WorkerHeartbeat.started_at)).all()


def are_others_alive() -> bool:
    others = select(WorkerHeartbeat.name).where(is_alive(), WorkerHeartbeat.name != NAME)
    return db.session.scalar(others.limit(1)) is not None


def worker_name() -> str:
    return f"{NAME}:{threading.current_thread().name}"[:100]


def is_alive() -> ColumnElement[bool]:
    return WorkerHeartbeat.seen_at > db_now(-ALIVE_SECONDS)
