"""Promised emails: their states, who holds them, and when they are due."""
