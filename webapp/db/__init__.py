"""The database: engines, clock, locks, and whether it is away."""
