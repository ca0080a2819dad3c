"""A day's load within an hour, and what it leaves behind: a tool for developers."""
