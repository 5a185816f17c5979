"""Where bytes and labels come from: image folders, ImageNet as shipped, packed files, a user's own source.

In: the kind of a data set, its folder, and train or val. Out: an ImageSource, and nothing decoded.
Start with source.py (the interface) and kinds.py (open_source); each kind has a file of its own.
"""

from spp_cls.data.sources.identity import SourceIdentity, identify_source
from spp_cls.data.sources.kinds import open_source
from spp_cls.data.sources.source import ImageSource, Split

__all__ = ["ImageSource", "SourceIdentity", "Split", "identify_source", "open_source"]
