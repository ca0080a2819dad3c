"""The conversation with the mail server."""
