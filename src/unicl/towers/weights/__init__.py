"""One module per published checkpoint layout."""
