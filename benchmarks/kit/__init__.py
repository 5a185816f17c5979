"""What the kit for one GPU is made of: its parts, and the running of their commands."""
