"""The worker, for huey_consumer."""

from webapp import create_worker
from webapp.delivery import relay, tasks

__all__ = ["app", "huey", "relay", "tasks"]

app = create_worker()
huey = app.extensions["huey"]
