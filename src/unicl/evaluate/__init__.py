"""Model and samples to a table of numbers."""
