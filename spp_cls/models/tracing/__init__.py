"""Tracing: what a network of timm's does to images, found by running it without weights.

In: the name of a network. Out: its channels, strides and centres, and the sides that it takes.
Start with traits.py; geometry.py follows the cells of a map through the operations, by the rules of spans.py.
"""
