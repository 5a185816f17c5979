"""The picture of augmented images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spp_cls.data.loading.dataset import TrainingCrops
from spp_cls.data.loading.sampler import TrainingSampler
from spp_cls.data.show import main
from spp_cls.data.sources import open_source
from spp_cls.data.transforms.augmentation import PaperAugmentation
from spp_cls.data.transforms.standard import MixAugmentation


def test_sheet(image_folder: Path, tmp_path: Path) -> None:
    root = f"data.root={image_folder}"
    out = tmp_path / "sheet.png"
    main(["data=imagefolder", root, f"out={out}", "images=10", "crop=112", "pca_std=0"])
    sheet = np.asarray(Image.open(out))
    # Two rows of up to eight at 112 and again at 90, each under a line of text of 14 pixels.
    assert sheet.shape == (2 * (112 + 14) + 2 * (90 + 14), 8 * 112, 3)
    source = open_source("imagefolder", image_folder, "train")
    (epoch, index), *_ = TrainingSampler(24, 10, seed=0)
    sample = TrainingCrops(source, 112, PaperAugmentation(pca_std=0), 0)[epoch, index]
    expected = sample.pixels[:, ::-1] if sample.flip else sample.pixels
    assert np.array_equal(sheet[14:126, :112], expected)
    small = sheet[2 * 126 + 14 : 2 * 126 + 14 + 90, :90].astype(int)
    reference = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((90, 90), Image.Resampling.BILINEAR))
    # Pillow rounds to whole grey levels after each of its two passes.
    assert abs(small - reference).max() <= 1
    # Letters above, white beside the last image.
    assert sheet[:14, :112].min() < 100
    assert sheet[126 + 14 :, 2 * 112 + 1 :][:112].min() == 255


def test_own_augmentation(image_folder: Path, tmp_path: Path) -> None:
    options = ["data=imagefolder", f"data.root={image_folder}", f"out={tmp_path / 'sheet.png'}", "images=1", "crop=64"]
    main([*options, "augmentation=tests.data.test_augmentation.RandomWindow"])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    (_, index), *_ = TrainingSampler(24, 1, seed=0)
    pixels = np.asarray(Image.open(open_source("imagefolder", image_folder, "train").path(index)))  # type: ignore[attr-defined]
    random = np.random.default_rng([0, 0, index, 8])
    left, top = (int(random.integers(size - 64 + 1)) for size in (pixels.shape[1], pixels.shape[0]))
    assert np.array_equal(sheet[14:78], pixels[top : top + 64, left : left + 64] // 2)


def test_images_are_mixed_as_in_the_first_step(image_folder: Path, tmp_path: Path) -> None:
    options = ["data=imagefolder", f"data.root={image_folder}", f"out={tmp_path / 'sheet.png'}", "images=2", "crop=64"]
    sheets = []
    for name in ("strong", "mix"):
        main([*options, f"augmentation={name}"])
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png"))[14:78].astype(np.float32))
    strong, mixed = sheets
    own, partner = torch.from_numpy(strong).permute(2, 0, 1)[None].split(64, dim=-1)
    random = np.random.default_rng([0, 0, 0, 9])
    expected, share = MixAugmentation().mix_pairs(own, partner, random)
    assert 0 < share < 1
    assert np.array_equal(mixed[:, :64], expected[0].permute(1, 2, 0).round().numpy())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed=1", r"data\.root is not set"),
        ("images=0", "images is a whole number from 1 to 10000, not 0"),
        ("epoch=x", "epoch is a whole number from 0, not 'x'"),
        ("pca_std=x", "pca_std is a number from 0 or null, not 'x'"),
        ("colour_deviation=0", "there is no key colour_deviation"),
        ("picture.png", r"picture\.png is not key=value"),
    ],
)
def test_mistakes(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["data=imagefolder", argument])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["augmentation=mix", "images=3"], "the augmentation mixes images in pairs, and 3 is an odd number"),
        (["augmentation=standard", "pca_std=0.9"], "pca_std is for augmentation=paper; leave it out"),
    ],
)
def test_what_would_not_be_drawn(arguments: list[str], message: str, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    with pytest.raises(ValueError, match=message):
        main(["data=imagefolder", f"data.root={image_folder}", f"out={out}", *arguments])
    assert not out.exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--help"])
    printed = capsys.readouterr().out
    assert not leave.value.code
    for row in ("data ", "data.root ", "out  ", "pca_std "):
        assert f"\n{row}" in printed
    (epoch,) = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert epoch.split()[1] == "0"
    assert "Example: python -m spp_cls.data.show" in printed
