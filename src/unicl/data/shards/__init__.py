"""Any data as WebDataset tars."""
