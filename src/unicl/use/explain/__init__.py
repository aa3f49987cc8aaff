"""Pictures of what matched: which places of a picture speak for which words of a text."""
