"""From a source to batches on the device.

In: an ImageSource, an augmentation, seed and rank. Out: Batch, the same for any number of workers and processes.
Start with dataset.py (samples), then batch.py (what a batch holds, normalising) and loader.py (workers, resuming).
"""
