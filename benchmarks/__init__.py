"""Measurements of what the app costs, compared with its targets."""
