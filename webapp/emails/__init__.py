"""How emails look, and what they say."""
