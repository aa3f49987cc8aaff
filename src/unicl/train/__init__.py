"""Model, objective and stream to a checkpoint."""
