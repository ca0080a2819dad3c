"""The operators' pages: the state of email, what became of each one, what to do about it, and the people it is for."""

from webapp.pages.ops import actions, mails, overview, user_actions, users, workers_and_audit
from webapp.pages.ops.access import blueprint

__all__ = ["actions", "blueprint", "mails", "overview", "user_actions", "users", "workers_and_audit"]
