"""Scripts for developers of this app."""
