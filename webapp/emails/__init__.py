"""The look of emails."""
