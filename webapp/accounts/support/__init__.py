"""Accounts in an operator's hands: people found, helped, shut out and let in again."""
