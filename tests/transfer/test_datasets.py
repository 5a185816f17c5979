"""The draws of Caltech-101, the lists of VOC 2007, image folders."""

from pathlib import Path

import numpy as np
import pytest

from spp_cls.cli.errors import UserError
from spp_cls.data.checks import check_sources
from spp_cls.data.sources.files import ImageFiles
from spp_cls.transfer.datasets import draw_split, open_transfer_data
from tests.conftest import write_image_folder
from tests.transfer.data import write_caltech, write_voc

LABELS = np.repeat([0, 1, 2], [40, 95, 31])


def test_draws_are_disjoint_and_of_the_papers_counts() -> None:
    splits = [draw_split(LABELS, 30, 50, seed=0, draw=draw) for draw in range(10)]
    for split in splits:
        assert not set(split.train) & set(split.test)
        assert np.bincount(LABELS[split.train]).tolist() == [30, 30, 30]
        # Up to 50 of the rest.
        assert np.bincount(LABELS[split.test]).tolist() == [10, 50, 1]
        assert sorted([*split.fit, *split.validation]) == sorted(split.train)
        assert np.bincount(LABELS[split.validation]).tolist() == [10, 10, 10]
    assert len({tuple(split.train) for split in splits}) == 10


def test_draws_do_not_change() -> None:
    split = draw_split(LABELS, 3, 2, seed=0, draw=1)
    assert split.train.tolist() == GOLDEN_TRAIN
    assert split.test.tolist() == GOLDEN_TEST
    other = draw_split(LABELS, 3, 2, seed=1, draw=1)
    assert other.train.tolist() != split.train.tolist()


# Of each class the indices with the smallest of np.random.PCG64([seed, draw, class, 10]).random_raw(images).
GOLDEN_TRAIN = [3, 6, 28, 56, 103, 110, 140, 144, 146]
GOLDEN_TEST = [1, 15, 85, 133, 148, 163]


def test_caltech_as_shipped(tmp_path: Path) -> None:
    write_caltech(tmp_path, images=6)
    data = open_transfer_data("caltech101", tmp_path, draws=2, train=4, test=5)
    assert data.class_names == ("BACKGROUND_Google", "anchor", "ant")
    assert (len(data.source), len(data.splits), data.has_several_labels) == (18, 2, False)
    assert data.targets.sum(1).tolist() == [-1] * 18
    assert data.source.name(6) == "anchor/image_0001.jpg"
    assert data.targets[6].tolist() == [-1, 1, -1]
    assert [len(part) for part in data.splits[0]] == [12, 6, 9, 3]
    # The folder itself may be named, too.
    inside = open_transfer_data("caltech101", tmp_path / "101_ObjectCategories", draws=2, train=4, test=5)
    assert inside.splits[1].train.tolist() == data.splits[1].train.tolist()


def test_a_class_with_too_few_images(tmp_path: Path) -> None:
    write_caltech(tmp_path, images=6)
    (tmp_path / "101_ObjectCategories/ant/image_0001.jpg").unlink()
    with pytest.raises(UserError, match=r"^class ant of .* has 5 images; 5 to train and one to test are needed$"):
        open_transfer_data("caltech101", tmp_path, train=5)


TARGETS = {
    "train": {"cat": [1, -1, 0, -1], "dog": [-1, 1, 1, -1]},
    "val": {"cat": [1, -1], "dog": [1, -1]},
    "test": {"cat": [-1, 1, 0], "dog": [1, -1, -1]},
}


def test_voc_as_shipped(tmp_path: Path) -> None:
    data = open_transfer_data("voc2007", write_voc(tmp_path, TARGETS))
    assert data.class_names == ("cat", "dog")
    assert data.has_several_labels
    (split,) = data.splits
    assert data.targets[split.train].T.tolist() == [[1, -1, 0, -1, 1, -1], [-1, 1, 1, -1, 1, -1]]
    assert data.targets[split.test].T.tolist() == [[-1, 1, 0], [1, -1, -1]]
    assert data.targets[split.fit].T.tolist() == list(TARGETS["train"].values())
    assert data.targets[split.validation].T.tolist() == list(TARGETS["val"].values())
    assert [data.source.name(index) for index in split.test] == [f"JPEGImages/{n:06}.jpg" for n in (7, 8, 9)]
    assert len(data.source.read(0)) > 0


def test_an_image_folder_trains_on_train_and_tests_on_val(tmp_path: Path) -> None:
    data = open_transfer_data("imagefolder", write_image_folder(tmp_path / "mine", train=4, val=2))
    (split,) = data.splits
    assert (data.name, len(split.train), len(split.test), len(split.validation)) == ("mine", 12, 6, 3)
    assert data.source.name(0) == "train/blue/0.jpg"
    assert data.source.name(12) == "val/blue/0.jpg"
    assert data.targets[split.test].argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert data.source.read(12) == (tmp_path / "mine/val/blue/0.jpg").read_bytes()
    assert data.source.location(12).endswith("mine/val/blue/0.jpg")
    assert data.source.size(13) == (120, 150)


class Parts:
    """A data source whose val part has its classes, or its images, otherwise than its train part."""

    def __init__(self, root: Path, split: str, val_classes: tuple[str, ...], val_labels: list[int]) -> None:
        is_val = split == "val"
        self.root = root
        self.class_names = val_classes if is_val else ("a", "b")
        self.labels = np.array(val_labels if is_val else [0, 1], np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    location = read = size = name


def open_reversed(root: Path, split: str) -> Parts:
    return Parts(root, split, ("b", "a"), [0, 1])


def open_without_val(root: Path, split: str) -> Parts:
    return Parts(root, split, ("a", "b"), [])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("open_reversed", "class 0 is 'a' in train and 'b' in val; "),
        ("open_without_val", "there are no validation images in"),
    ],
)
def test_parts_that_do_not_fit(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_transfer_data(f"tests.transfer.test_datasets.{kind}", tmp_path)


@pytest.mark.parametrize("kind", ["caltech101", "voc2007", "imagefolder"])
def test_an_empty_folder_is_not_the_current_one(kind: str) -> None:
    with pytest.raises(UserError, match=r"data\.root is empty; set it to the data set's folder"):
        open_transfer_data(kind, "")


def test_a_class_alone_or_none(tmp_path: Path) -> None:
    choices: list[tuple[tuple[str, ...], str]] = [(("red",), "red"), ((), "none")]
    for classes, named in choices:
        source = ImageFiles(tmp_path, np.zeros(0, np.bytes_), np.zeros(0, np.int64), classes)
        with pytest.raises(UserError, match=rf"has fewer than two classes \({named}\); set data\.root"):
            check_sources(source, source, 1)


def test_wrong_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        open_transfer_data("caltech101", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no folder 101_ObjectCategories; set data.root"):
        open_transfer_data("caltech101", tmp_path)
    with pytest.raises(UserError, match=r"has no VOCdevkit/VOC2007/ImageSets/Main; set data.root"):
        open_transfer_data("voc2007", tmp_path)
    with pytest.raises(UserError, match="draws=3 is for data=caltech101"):
        open_transfer_data("voc2007", tmp_path, draws=3)
    lists = write_voc(tmp_path, TARGETS) / "VOCdevkit/VOC2007/ImageSets/Main"
    text = (lists / "dog_test.txt").read_text()
    (lists / "dog_test.txt").write_text(text.splitlines()[0])
    with pytest.raises(UserError, match=r"dog_test.txt has no line for image 000008 of test.txt"):
        open_transfer_data("voc2007", tmp_path)
    (lists / "dog_test.txt").write_text(text.replace("-1", "2"))
    with pytest.raises(UserError, match="does not have lines of an image and 1, -1 or 0"):
        open_transfer_data("voc2007", tmp_path)
    (lists / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test.txt; unpack VOC2007's trainval and test into one VOCdevkit"):
        open_transfer_data("voc2007", tmp_path)
    (tmp_path / "few").mkdir()
    no_dogs = {part: {**of_classes, "dog": [-1] * len(of_classes["dog"])} for part, of_classes in TARGETS.items()}
    with pytest.raises(UserError, match=r"class dog of .* needs images of its own"):
        open_transfer_data("voc2007", write_voc(tmp_path / "few", no_dogs))
