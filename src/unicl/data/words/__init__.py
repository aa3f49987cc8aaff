"""Words of captions: what they are, which are hidden, which are tags."""
