"""The operator's pages: how the mail is, what became of each, and what to do about it."""

from webapp.pages.ops import actions, lists, mails, overview
from webapp.pages.ops.gate import blueprint

__all__ = ["actions", "blueprint", "lists", "mails", "overview"]
