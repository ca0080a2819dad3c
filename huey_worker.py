"""The worker, for huey_consumer."""

from webapp import create_app

app = create_app()
huey = app.extensions["huey"]
