"""The extensions that modules share, unbound; create_app() binds them."""

from __future__ import annotations

from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager

from webapp.db import engines
from webapp.db.base import db
from webapp.i18n import Babel
from webapp.queue.flask_huey import FlaskHuey
from webapp.queue.storage import limits_storage
from webapp.smtp.connection import Mail

login = LoginManager()
# Sessions are rows of ours, and nothing asks whether one is "fresh": it would only write to each visitor's cookie.
login.session_protection = None
babel = Babel()
mail = Mail()
huey = FlaskHuey()
# Windows that move: with fixed ones twice as many would pass around each full hour.
limiter = Limiter(get_remote_address, strategy="moving-window")


def init_app(app: Flask) -> None:
    db.init_app(app)
    login.init_app(app)
    babel.init_app(app)
    mail.init_app(app)
    huey.init_app(app)
    app.config.update(limits_storage(app.config))
    limiter.init_app(app)
    with app.app_context():
        app.extensions["outage"] = engines.tune(db.engine, app.config["DATABASE_TIMEOUT"])
