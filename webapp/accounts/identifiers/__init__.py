"""How usernames and addresses are written, and which spellings are the same."""
