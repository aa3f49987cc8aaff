"""What data may come as: each kind of folder, table and archive, and what their readers share."""
