"""A signup front door whose verification mail is never lost."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from webapp import cli, config, extensions, logs, mails, pages, passwords


def create_app(environ: Mapping[str, str] | None = None) -> Flask:
    """Return the app with everything bound.

    `environ` stands in for the process environment and `.env`. Raises ConfigError.
    """
    # pages/assets.py serves our files.
    app = Flask(__name__, instance_path=str(config.INSTANCE), static_folder=None)
    app.config.from_mapping(config.load(environ))
    if proxies := app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]
    logs.init_app(app)
    extensions.init_app(app)
    passwords.init_app(app)
    mails.init_app(app)
    pages.init_app(app)
    cli.init_app(app)
    return app
