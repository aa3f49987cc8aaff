"""Models as files that other programs run and read."""
