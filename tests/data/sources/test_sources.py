"""Data sets on disk: image folders, ImageNet as it is shipped, and kinds from outside the package."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spp_cls import UserError
from spp_cls.data import ImageNetDataModule
from spp_cls.data.demo import CLASSES, IMAGES_PER_CLASS
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.augmentation import PaperAugmentation
from spp_cls.transfer.datasets import open_transfer_data
from tests.conftest import write_image
from tests.data.test_transforms import encoded
from tests.transfer.data import write_caltech

# In the order of the ILSVRC ids, which is not that of the names.
WORDNET_IDS = ["n03", "n01", "n02"]


def listed(root: Path, split: str, kind: str = "imagenet") -> dict[str, str]:
    source = open_source(kind, root, split)  # type: ignore[arg-type]
    return {source.name(i): source.class_names[source.labels[i]] for i in range(len(source))}


def test_image_folder(image_folder: Path) -> None:
    source = open_source("imagefolder", image_folder, "train")
    assert source.class_names == ("blue", "green", "red")
    names = [source.name(i) for i in range(len(source))]
    assert names[:2] == ["blue/0.jpg", "blue/1.jpg"]
    assert source.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert all(source.path(i).is_file() for i in range(len(source)))


def test_caltech_is_split_as_the_first_draw_of_transfer(tmp_path: Path) -> None:
    write_caltech(tmp_path, images=85, classes=2)
    # Without ten of its images, a class has fewer than 50 left to test.
    for number in range(1, 11):
        (tmp_path / f"101_ObjectCategories/anchor/image_{number:04}.jpg").unlink()
    drawn = open_transfer_data("caltech101", tmp_path, draws=1)
    names = [drawn.source.name(index) for index in range(len(drawn.source))]
    for split, indices in (("train", drawn.splits[0].train), ("val", drawn.splits[0].test)):
        source = open_source("caltech101", tmp_path, split)  # type: ignore[arg-type]
        assert [source.name(index) for index in range(len(source))] == [names[index] for index in indices]
        assert [source.class_names[label] for label in source.labels] == [names[i].split("/")[0] for i in indices]
        assert np.bincount(source.labels).tolist() == ([30, 30] if split == "train" else [50, 45])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"nothing has no folder 101_ObjectCategories; set data.root to the folder"):
        open_source("caltech101", tmp_path / "nothing", "train")


def test_val_classes_have_the_numbers_of_train(image_folder: Path) -> None:
    for path in (image_folder / "val/green").iterdir():
        path.unlink()
    (image_folder / "val/green").rmdir()
    source = open_source("imagefolder", image_folder, "val")
    assert source.class_names == ("blue", "green", "red")
    assert source.labels.tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "no folder val"),
        (lambda root: (root / "val/red").rename(root / "val/pink"), r"class pink is in .*val but not in .*train"),
        (lambda root: (root / "val/red/new").mkdir(), None),
        (lambda root: [(root / "val/empty").mkdir(), (root / "train/empty").mkdir()], "empty has no images"),
    ],
)
def test_mistakes_in_an_image_folder(image_folder: Path, change, message: str | None) -> None:
    change(image_folder)
    if message is None:
        assert len(open_source("imagefolder", image_folder, "val")) == 9
    else:
        with pytest.raises(ValueError, match=message):
            open_source("imagefolder", image_folder, "val")


def test_no_class_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "train/1.jpg", 9, 9, (0, 0, 0))
    with pytest.raises(ValueError, match="no class folders"):
        open_source("imagefolder", tmp_path, "train")


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    images = tmp_path / "ILSVRC/Data/CLS-LOC"
    rows = []
    for number, name in enumerate(WORDNET_IDS):
        write_image(images / f"train/{name}/{name}_1.JPEG", 8, 8, (0, 0, 0))
        for i in range(2):
            image = f"ILSVRC2012_val_{2 * number + i + 1:08d}"
            write_image(images / f"val/{image}.JPEG", 8, 8, (0, 0, 0))
            rows.append((image, f"{name} 1 2 3 4 {name} 5 6 7 8 "))
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as file:
        # Kaggle's rows are in no order.
        csv.writer(file).writerows([("ImageId", "PredictionString"), *rows[::-1]])
    return tmp_path


EXPECTED_VAL = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": WORDNET_IDS[i // 2] for i in range(6)}


def test_imagenet_of_kaggle(kaggle: Path) -> None:
    assert listed(kaggle, "train") == {f"{name}/{name}_1.JPEG": name for name in WORDNET_IDS}
    assert listed(kaggle, "val") == EXPECTED_VAL
    assert open_source("imagenet", kaggle, "val").class_names == ("n01", "n02", "n03")


def test_a_hidden_folder_in_a_flat_val(kaggle: Path) -> None:
    (kaggle / "ILSVRC/Data/CLS-LOC/val/.ipynb_checkpoints").mkdir()
    assert listed(kaggle, "val") == EXPECTED_VAL


def as_devkit(kaggle: Path) -> Path:
    """Turn it into train/ and val/ beside the devkit, with labels by ILSVRC id."""
    (kaggle / "LOC_val_solution.csv").unlink()
    for split in ("train", "val"):
        (kaggle / "ILSVRC/Data/CLS-LOC" / split).rename(kaggle / split)
    (kaggle / "ILSVRC/Data/CLS-LOC").rmdir()
    devkit = kaggle / "ILSVRC2012_devkit_t12/data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1\n2\n2\n3\n3\n")
    return devkit


def test_imagenet_with_the_devkit(kaggle: Path) -> None:
    from scipy.io import savemat

    devkit = as_devkit(kaggle)
    synsets = np.array(
        [(i + 1, name) for i, name in enumerate(WORDNET_IDS)], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    savemat(devkit / "meta.mat", {"synsets": synsets})
    assert listed(kaggle, "val") == EXPECTED_VAL


def test_imagenet_with_the_text_devkit(kaggle: Path) -> None:
    devkit = as_devkit(kaggle)
    (devkit / "map_clsloc.txt").write_text("n03 1 cat\nn01 2 dog\nn02 3 cow\n")
    assert listed(kaggle, "val") == EXPECTED_VAL
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1\n2\n")
    with pytest.raises(ValueError, match="3 labels for 6 images"):
        open_source("imagenet", kaggle, "val")


def test_imagenet_with_val_sorted_into_classes(kaggle: Path) -> None:
    as_devkit(kaggle)
    for name, wordnet_id in EXPECTED_VAL.items():
        (kaggle / "val" / wordnet_id).mkdir(exist_ok=True)
        (kaggle / "val" / name).rename(kaggle / "val" / wordnet_id / name)
    assert set(listed(kaggle, "val").values()) == set(WORDNET_IDS)


def test_imagenet_without_labels(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(ValueError, match=r"no labels for the flat val folder .*LOC_val_solution\.csv"):
        open_source("imagenet", kaggle, "val")


def test_imagenet_with_labels_of_other_images(kaggle: Path) -> None:
    write_image(kaggle / "ILSVRC/Data/CLS-LOC/val/other.JPEG", 8, 8, (0, 0, 0))
    with pytest.raises(ValueError, match=r"1 images of .* have no class .* other\.JPEG first"):
        open_source("imagenet", kaggle, "val")


def test_the_demo_is_drawn_once_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMAGES_PER_CLASS, "train", 2)
    monkeypatch.setitem(IMAGES_PER_CLASS, "val", 1)
    first = open_source("demo", tmp_path / "a/demo", "train")
    assert first.class_names == tuple(sorted(CLASSES))
    assert len(first) == 20
    second = open_source("demo", tmp_path / "b", "train")
    for i in range(20):
        assert first.path(i).read_bytes() == second.path(i).read_bytes()
    times = [first.path(i).stat().st_mtime_ns for i in range(20)]
    open_source("demo", tmp_path / "a/demo", "val")
    assert [first.path(i).stat().st_mtime_ns for i in range(20)] == times
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["demo"]


class PairOfImages:
    """A data set that the package knows nothing of: two images, made when they are read."""

    class_names = ("dark", "light")

    def __init__(self, root: Path, split: str) -> None:
        self.root = root / split
        self.labels = np.array([0, 1])

    def __len__(self) -> int:
        return 2

    def name(self, index: int) -> str:
        return self.class_names[index]

    def location(self, index: int) -> str:
        return f"{self.root}#{index}"

    def read(self, index: int) -> bytes:
        return encoded(Image.fromarray(np.full((70, 90, 3), 50 + 100 * index, np.uint8)), "PNG")

    def size(self, index: int) -> tuple[int, int]:
        return 90, 70


class ListOfNames(PairOfImages):
    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.class_names = ["dark", "light"]  # type: ignore[assignment]


class ListOfLabels(PairOfImages):
    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.labels = [0, 1]  # type: ignore[assignment]


class SmallLabels(PairOfImages):
    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.labels = self.labels.astype(np.uint8)  # type: ignore[assignment]


class LabelsFromOne(PairOfImages):
    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.labels = self.labels + 1


class LabelsToIgnore(LabelsFromOne):
    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        self.labels = np.array([0, -100])


class OneNameTwice(PairOfImages):
    class_names = ("dark", "dark")


def open_nothing(root: Path, split: str) -> object:
    return [root, split]


def test_own_kind(tmp_path: Path) -> None:
    data = ImageNetDataModule(
        f"{__name__}.PairOfImages", str(tmp_path / "far"), 2, 0, crop=56, augmentation=PaperAugmentation(pca_std=0)
    )
    data.setup("fit")
    assert data.class_names == ("dark", "light")
    assert data.val_source.root == tmp_path / "far/val"
    (batch,) = data.train_dataloader()
    assert sorted(batch.indices.tolist()) == [0, 1]
    assert batch.images[:, 0, 5, 7].tolist() == [50 + 100 * index for index in batch.indices.tolist()]
    (val,) = data.val_dataloader()
    assert val.images.unique().tolist() == [50, 150]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "folder",
            "there is no kind of data folder; choose demo, .*, caltech101, packed, or the dotted path",
        ),
        ("my_module.open_pairs", r"data\.kind=my_module\.open_pairs cannot be imported"),
        (f"{__name__}.WORDNET_IDS", r"data\.kind=.*WORDNET_IDS is not a class or function"),
        (f"{__name__}.write_image", r"data\.kind: "),
        (f"{__name__}.open_nothing", "returned a list without root, labels, class_names, name, .*ImageSource"),
        (f"{__name__}.ListOfNames", r"whose class_names are not a tuple of texts; convert"),
        (f"{__name__}.ListOfLabels", r"whose labels are not an int64 array, one for each of its 2 im"),
        (f"{__name__}.SmallLabels", r"whose labels are not an int64 array"),
        (f"{__name__}.LabelsFromOne", r"whose labels are not from 0 to 1; convert them"),
        (f"{__name__}.LabelsToIgnore", r"whose labels are not from 0 to 1; convert them"),
        (f"{__name__}.OneNameTwice", r"whose class_names are not one name or more, each once"),
    ],
)
def test_mistakes_in_an_own_kind(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_source(kind, tmp_path, "train")
    assert "\n" not in str(error.value)
