"""Scores and keys to a loss."""
