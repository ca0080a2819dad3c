"""The web app, for gunicorn and for the flask command."""

from webapp import create_app

app = create_app()
