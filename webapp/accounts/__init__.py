"""People and their accounts: signing up, proving an address, signing in, changing things."""
