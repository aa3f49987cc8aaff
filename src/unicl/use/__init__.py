"""Model to answers: embed, classify, search."""
