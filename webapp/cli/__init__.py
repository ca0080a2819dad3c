"""Commands for operators: what became of emails and people, and what to do about it."""

from __future__ import annotations

from flask import Flask
from flask_migrate import Migrate

from webapp.cli import mail, mail_actions, people, users
from webapp.db.base import db

migrate = Migrate(compare_type=True, render_as_batch=False)


def init_app(app: Flask) -> None:
    migrate.init_app(app, db)
    for command in mail_actions.COMMANDS:
        mail.mail_commands.add_command(command)
    app.cli.add_command(mail.mail_commands)
    for command in people.COMMANDS:
        users.user_commands.add_command(command)
    app.cli.add_command(users.user_commands)
