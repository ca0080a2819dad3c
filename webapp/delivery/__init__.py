"""Sending: tasks, the relay, workers, and what holds them back."""
