"""Signing in, and the ways back into an account."""
