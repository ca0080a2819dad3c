"""A signup front door whose verification email is never lost."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask
from jinja2 import ChoiceLoader, FileSystemLoader, PrefixLoader, StrictUndefined

from webapp import paths


def create_app(environ: Mapping[str, str] | None = None) -> Flask:
    """Return the app with everything bound.

    `environ` stands in for the process environment and `.env`. Raises ConfigError.
    """
    from webapp import cli, pages  # noqa: PLC0415 - they take 12 MB, which workers do not need

    app = create_worker(environ)
    pages.init_app(app)
    cli.init_app(app)
    return app


def create_worker(environ: Mapping[str, str] | None = None) -> Flask:
    """Return the app without pages and commands: enough to send emails."""
    # Here, since the mailbox's server, which uses a part of this package, starts four times sooner without them.
    from own import hooks  # noqa: PLC0415
    from webapp import config, extensions, logs  # noqa: PLC0415
    from webapp.accounts import passwords  # noqa: PLC0415
    from webapp.emails import render  # noqa: PLC0415

    # No static folder: pages/assets.py serves our files.
    app = Flask(__name__, instance_path=str(paths.INSTANCE), static_folder=None)
    app.config.from_mapping(config.load(environ))
    _read_templates(app)
    logs.init_app(app)
    extensions.init_app(app)
    passwords.init_app(app)
    render.init_app(app)
    app.context_processor(lambda: {"app_name": app.config["APP_NAME"]})
    hooks.init_app(app)
    return app


def _read_templates(app: Flask) -> None:
    """Let a template in instance/templates replace ours of the same name; it can include ours as webapp/<name>.

    An undefined variable is an error, not a blank.
    """
    ours = FileSystemLoader(paths.TEMPLATES)
    own = FileSystemLoader(paths.INSTANCE / "templates")
    app.jinja_loader = ChoiceLoader([own, ours, PrefixLoader({"webapp": ours})])
    app.jinja_env.undefined = StrictUndefined
