"""RQ. Its workers import the job by name."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))


def enqueue(user_id: int) -> None:
    queue.enqueue("benchmarks.rivals.job.send", user_id)
