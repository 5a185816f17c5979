"""A label means one class: the splits of a data set have the same names in the same order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spp_cls import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.pack import main, verify
from spp_cls.data.sources import open_source
from spp_cls.data.sources.files import ImageFiles
from tests.conftest import write_image
from tests.data.sources.test_pack import write_parquet


def write_split(root: Path, name: str, class_names: tuple[str, ...], is_noted: bool = True) -> None:
    """Write a Parquet file of one image of each class."""
    for label in range(len(class_names)):
        write_image(root / f"{label}.jpg", 40, 30, (50, 50, 50))
    names = np.array([f"{label}.jpg".encode() for label in range(len(class_names))])
    write_parquet(root, ImageFiles(root, names, np.arange(len(names)), class_names), name)
    if not is_noted:
        table: pa.Table = pq.read_table(root / name)
        pq.write_table(table.replace_schema_metadata(None), root / name)


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (("dog", "cat"), "class 0 is 'cat' in train and 'dog' in val; give both the same"),
        (("cat", "dog", "cow"), "class 2 is not there in train and 'cow' in val"),
    ],
)
def test_other_names_in_val_are_not_packed(tmp_path: Path, val: tuple[str, ...], message: str) -> None:
    write_split(tmp_path / "hub", "train.parquet", ("cat", "dog"))
    write_split(tmp_path / "hub", "val.parquet", val)
    with pytest.raises(UserError, match=message):
        main(["data=parquet", f"data.root={tmp_path / 'hub'}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("train", "val"), [(3, 5), (5, 3)])
def test_classes_without_names_are_those_of_both_splits(tmp_path: Path, train: int, val: int) -> None:
    write_split(tmp_path / "hub", "train.parquet", ("any",) * train, is_noted=False)
    write_split(tmp_path / "hub", "val.parquet", ("any",) * val, is_noted=False)
    main(["data=parquet", f"data.root={tmp_path / 'hub'}", f"out={tmp_path / 'out'}"])
    assert verify(tmp_path / "out") == {"train": train, "val": val}
    assert open_source("packed", tmp_path / "out", "train").class_names == ("0", "1", "2", "3", "4")


def open_swapped(root: Path, split: str) -> Any:
    files = open_source("imagefolder", root, split)  # type: ignore[arg-type]
    names = files.class_names if split == "train" else files.class_names[::-1]
    return ImageFiles(files.root, files.names, files.labels, names)  # type: ignore[attr-defined]


def test_the_data_module_compares_own_sources(shared_image_folder: Path) -> None:
    data = ImageNetDataModule(f"{__name__}.open_swapped", str(shared_image_folder), 6, 0)
    with pytest.raises(UserError, match="class 0 is 'blue' in train and 'red' in val"):
        data.setup("fit")
