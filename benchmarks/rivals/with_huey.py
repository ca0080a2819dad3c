"""Huey, as in this app, but with Flask-Mail out of the box."""

from __future__ import annotations

import os

from huey import RedisHuey

from benchmarks.rivals import job

huey = RedisHuey("rival", url=os.environ["REDIS_URL"], results=False)


@huey.task(name="send")
def send(user_id: int) -> None:
    job.send(user_id)


enqueue = send
