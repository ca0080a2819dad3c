"""Commands for the operator: what became of the mails, and what to do about it."""

from __future__ import annotations

from flask import Flask

from webapp.cli import mail, mend, users


def init_app(app: Flask) -> None:
    for command in mend.COMMANDS:
        mail.mail_commands.add_command(command)
    # For a dead mail that is the word.
    mail.mail_commands.add_command(mend.retry, "revive")
    app.cli.add_command(mail.mail_commands)
    app.cli.add_command(users.user_commands)
