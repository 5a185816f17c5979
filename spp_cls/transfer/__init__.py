"""Transfer: features of a network -> linear SVM -> the paper's Tables 6 to 8.

In: a network, a data set, layers, views and sides. Out: accuracy (Caltech-101, image folders) or average precision
(VOC 2007) of a linear SVM a class against the rest, as CSV rows and tables beside the paper's.
Start with __main__.py; features/ goes through the images once, experiment.py trains and tests on what it wrote.
"""

from spp_cls.transfer.features.extraction import create_store, extract_features
from spp_cls.transfer.features.layers import Feature, compute_layers
from spp_cls.transfer.metrics import compute_11_point_precision

__all__ = ["Feature", "compute_11_point_precision", "compute_layers", "create_store", "extract_features"]
