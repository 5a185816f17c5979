"""The sizes of the images of a large folder, cached between runs where there is a place for it."""

import os
from pathlib import Path

import numpy as np
import pytest

from spp_cls.data.sources import listing, open_source
from spp_cls.data.sources.headers import read_image_sizes


def test_an_unreadable_header_does_not_cost_the_others_their_cache(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "LEAST_CACHED", 1)
    (image_folder / "train/blue/0.jpg").write_bytes(b"no image")
    for folder in image_folder.glob("*/*"):
        os.utime(folder, (1e9, 1e9))
    source = open_source("imagefolder", image_folder, "train")
    expected = np.array([[0, 0], *(source.size(index) for index in range(1, 24))])
    assert np.array_equal(read_image_sizes(source), expected)
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "size", None)
        assert np.array_equal(read_image_sizes(source), expected)
    # A single side of zero is of a crafted or damaged cache.
    (cache,) = (tmp_path / "cache/spp_cls").glob("sizes-*.npz")
    with np.load(cache) as stored:
        changed, sizes = stored["changed"], stored["sizes"]
    np.savez(cache, changed=changed, sizes=sizes * [[0, 1]])
    assert np.array_equal(read_image_sizes(source), expected)


def test_a_user_without_a_home_has_no_cache(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", find_no_home)
    monkeypatch.setattr(listing, "LEAST_CACHED", 1)
    for folder in image_folder.glob("*/*"):
        os.utime(folder, (1e9, 1e9))
    assert len(read_image_sizes(open_source("imagefolder", image_folder, "train"))) == 24
