"""The queue of hints: Huey, its messages, and where they are stored."""
