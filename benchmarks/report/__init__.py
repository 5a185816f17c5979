"""What the tables of the documents are made of: cells, claims, and figures of speed."""
