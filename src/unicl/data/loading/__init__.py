"""Batches made ahead of time, by threads of the trainer or of a process of their own."""
