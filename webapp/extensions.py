"""The extensions that modules share; init_app() binds them to the app."""

from __future__ import annotations

from flask import Flask
from flask_login import LoginManager

from webapp.db import engines
from webapp.db.base import db
from webapp.db.outages import Outage
from webapp.i18n import Babel
from webapp.queue.flask_huey import FlaskHuey
from webapp.smtp.connection import Mail

login = LoginManager()
# Sessions are our own rows, and nothing asks for a "fresh" one: protection would only write to visitors' cookies.
login.session_protection = None
babel = Babel()
mail = Mail()
huey = FlaskHuey()


def init_app(app: Flask) -> None:
    db.init_app(app)
    login.init_app(app)
    babel.init_app(app)
    mail.init_app(app)
    huey.init_app(app)
    app.extensions["outage"] = Outage(app.config["COMPOSE_COMMAND"])
    with app.app_context():
        engines.tune(db.engine, app.extensions["outage"], app.config["DATABASE_TIMEOUT"])
