"""The folder of a run: its lock, checkpoints, signals to stop, and how new results take the place of old ones.

In: a training that goes on for days, and whatever happens to it. Out: files that are whole, and resume bit for bit.
Start with folder.py; checkpointing.py is what writes.
"""
