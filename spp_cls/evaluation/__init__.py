"""Testing a network: protocols, features and scores of views, predictions, rows of results and the paper's tables.

In: a network and a dataset source. Out: errors by protocol as CSV rows, predictions, or features of each view.
Start with evaluate.py, which goes through the images; features.py computes the views, protocols.py says which.
"""

from spp_cls.evaluation.evaluate import evaluate
from spp_cls.evaluation.features import view_features
from spp_cls.evaluation.images import Cut, cut_images
from spp_cls.evaluation.predictions import Predictions
from spp_cls.evaluation.protocols import PROTOCOLS, Protocol, View, get_protocol

__all__ = [
    "PROTOCOLS",
    "Cut",
    "Predictions",
    "Protocol",
    "View",
    "cut_images",
    "evaluate",
    "get_protocol",
    "view_features",
]
