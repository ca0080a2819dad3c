"""Operators' work on accounts: finding people, helping them, locking them out and letting them in again."""
