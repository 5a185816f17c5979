"""The batches of packed files: their sizes, and packs whose batches have another."""

from pathlib import Path

import pyarrow as pa
import pytest

from spp_cls import UserError
from spp_cls.data.pack import verify
from spp_cls.data.sources import open_source, packing
from spp_cls.data.sources.packed import PackedImages
from spp_cls.data.sources.packing import PackSettings, pack
from tests.conftest import write_image_folder
from tests.data.sources.test_pack import sources


def test_a_batch_of_the_largest_images_fits_into_an_arrow_column() -> None:
    assert packing.ROWS_PER_BATCH * packing.MOST_BYTES < 2**31 - 1
    assert packing.MOST_BYTES > 32e6
    assert packing.IMAGES_PER_FILE % packing.ROWS_PER_BATCH == 0


def test_an_image_too_large_for_a_batch_is_listed(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = sources(image_folder), tmp_path / "out"
    sizes = [len(whole["train"].read(index)) for index in range(24)]
    largest = sizes.index(max(sizes))
    monkeypatch.setattr(packing, "MOST_BYTES", max(sizes) - 1)
    with pytest.raises(
        UserError, match=r"jpg has [\d,]+ bytes, over the [\d,]+ of a packed image; .*on_bad=skip"
    ) as error:
        pack(whole, out, PackSettings(), 1, "stop")
    assert "\n" not in str(error.value)
    manifest = pack(whole, out, PackSettings(), 1, "skip")
    assert [bad["name"] for bad in manifest["splits"]["train"]["bad"]] == [whole["train"].name(largest)]
    assert len(pack(whole, tmp_path / "small", PackSettings(min_side=32), 1, "stop")["splits"]["train"]["bad"]) == 0


def test_packs_of_longer_batches_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = sources(write_image_folder(tmp_path / "images", train=24)), tmp_path / "out"
    with monkeypatch.context() as before:
        before.setattr(packing, "ROWS_PER_BATCH", 1024)
        manifest = pack(whole, out, PackSettings(), 1, "stop")
    assert pa.ipc.open_file(out / "train-00000.arrow").num_record_batches == 1
    packed = open_source("packed", out, "train")
    assert isinstance(packed, PackedImages)
    assert [bytes(packed.read(index)) for index in range(72)] == [whole["train"].read(index) for index in range(72)]
    assert verify(out) == {"train": 72, "val": 9}
    # The same command finds it complete.
    assert pack(whole, out, PackSettings(), 1, "stop") == manifest
