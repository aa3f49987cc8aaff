"""Columns of a batch to embeddings."""
