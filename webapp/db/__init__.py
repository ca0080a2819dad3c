"""The database: engines, clock, locks and outages."""
