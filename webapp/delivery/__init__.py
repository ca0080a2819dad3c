"""Sending: tasks, the relay, workers, and what limits them."""
