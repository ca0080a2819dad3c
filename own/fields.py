"""Fields of your own that people fill in when they sign up."""

from __future__ import annotations


class Fields:
    """Each is a column of `users`, a field of the forms, a line of the account and of its export."""
