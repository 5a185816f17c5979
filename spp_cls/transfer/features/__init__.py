"""Features: a network and images -> a vector for each image, layer, view and side.

In: a network, a data set, layers, views and sides. Out: a folder of NumPy files, which an interrupted run fills up.
Start with extraction.py, which goes through the images once; layers.py computes the vectors, store.py keeps them.
"""
