"""The networks: Table 1 as data, layers, the three parts of a network, and files that rebuild it.

In: a NetConfig, or a backbone, a pooling and a head. Out: an SPPNet from images to maps, pooled values and logits.
Start with net.py; specs.py holds Table 1, backbone.py the geometry, pyramid.py and lrn.py the paper's two layers.
"""
