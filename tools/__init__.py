"""Scripts for whoever works on this app."""
