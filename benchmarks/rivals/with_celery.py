"""Celery."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.rivals import job

queue = Celery("rival", broker=os.environ["REDIS_URL"])
queue.conf.task_ignore_result = True


@queue.task(name="send")
def send(user_id: int) -> None:
    job.send(user_id)


enqueue = send.delay
