"""From a checkpoint and images to the rows of a table."""
