"""Huey, as this app has it, but with Flask-Mail as it comes."""

from __future__ import annotations

import os

from huey import RedisHuey

from benchmarks.rivals import job

huey = RedisHuey("rival", url=os.environ["REDIS_URL"], results=False)


@huey.task(name="send")
def send(user_id: int) -> None:
    job.send(user_id)


enqueue = send
