"""What the app costs, measured beside its limits."""
