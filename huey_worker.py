"""The worker, for huey_consumer."""

import webapp.tasks

app = webapp.create_worker()
huey = app.extensions["huey"]
