"""Two columns of embeddings to scores, and the learned scale that belongs to them."""
