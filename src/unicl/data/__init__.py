"""Anything on disk to batches: sources, samples, stream."""
