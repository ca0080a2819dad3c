"""Signing up, waiting for the email, and following its link."""
