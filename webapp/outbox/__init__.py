"""Emails that were promised: their states, who holds them, and when they are due."""
