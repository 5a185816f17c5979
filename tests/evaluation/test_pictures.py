"""Pictures of views: on an image, on its map, and the pyramid's bins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import spp_cls
from spp_cls.cli.errors import UserError
from spp_cls.data.loading.batch import normalize
from spp_cls.data.transforms.crops import resize
from spp_cls.evaluation.pictures import draw_views
from tests.conftest import Command, Tool, error_of, write_checkpoint, write_image

# Of the picture's layout: the shorter side of the image, the space between panels, two lines of text.
SIDE, GAP, TOP = 280, 24, 24 + 2 * 22
# The largest and the smallest value of a map.
LIGHT, DARK = (252, 253, 191), (13, 8, 60)


def test_cells_and_bins_have_the_colours_of_their_values(tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "best.ckpt", input_size=64)
    write_image(tmp_path / "photo.png", 150, 100, (90, 120, 200))
    pixels = np.array(Image.open(tmp_path / "photo.png"))
    picture = np.asarray(draw_views(net, pixels, scale=448, channel=5))
    # Scale 448 of crops of 224 is 128 of crops of 64: an image of 192 x 128, drawn 280 high.
    image = resize(pixels, 128)
    assert image.shape == (128, 192, 3)
    zoom = SIDE / 128
    with torch.no_grad():
        maps = net.forward_features(
            normalize(torch.tensor(image).permute(2, 0, 1)[None], net.config.mean, net.config.std)
        )
    channel = maps[0, 5].numpy()
    stride, first = net.backbone.stride, net.backbone.first_centre
    left = GAP + 420 + GAP
    for (row, column), value in np.ndenumerate(channel):
        x, y = left + (first + 0.5 + stride * column) * zoom, TOP + (first + 0.5 + stride * row) * zoom
        colour = tuple(picture[round(y), round(x)].tolist())
        assert (colour == LIGHT) == (value == channel.max())
        assert (colour == DARK) == (value == 0)
    assert (channel == 0).any()
    # The centre window reaches from pixel 64 to 128 and from 32 to 96: the cells whose centres are inside.
    inside = lambda start, count: [j for j in range(count) if start < first + stride * j < start + 64]  # noqa: E731
    window = channel[np.ix_(inside(32, channel.shape[0]), inside(64, channel.shape[1]))]
    # The last panel holds level 1, the maximum of the window, at the bottom right.
    largest = np.interp(window.max() / channel.max() * 4, range(5), [13, 84, 183, 252, 252])
    right = picture.shape[1] - GAP - (SIDE - GAP) // 4
    assert picture[TOP + SIDE - 60, right][0] == int(largest)


# Where timm's network pads as TensorFlow does, the last cell can lie behind the image; at scale 4000 a window is
# smaller than the space between the lines of nine.
@pytest.mark.parametrize(
    ("name", "side", "scale"),
    [("timm/tf_mobilenetv3_small_minimal_100", side, 256) for side in (73, 79, 96, 139)] + [("zf5_tiny", 100, 4000)],
)
def test_cells_beyond_the_image_are_left_out(name: str, side: int, scale: int) -> None:
    net = spp_cls.build_net(name, input_size=64, num_classes=3).eval()
    picture = np.asarray(draw_views(net, np.full((73, side, 3), 90, np.uint8), scale))
    assert (picture[:, -GAP // 2 :] == 255).all()
    assert not (picture[TOP : TOP + SIDE, GAP : GAP + SIDE] == 255).all(2).any()


def test_many_levels_are_inside_the_picture(tmp_path: Path) -> None:
    net = write_checkpoint(tmp_path / "best.ckpt", input_size=64, levels=range(10, 0, -1))
    picture = np.asarray(draw_views(net, np.full((70, 70, 3), 90, np.uint8)))
    # Image and map, then five columns of two levels.
    side = (SIDE - GAP) // 2
    assert picture.shape == (TOP + SIDE + GAP, GAP + 2 * (SIDE + GAP) + 5 * (side + GAP), 3)
    assert (picture[:, -GAP // 2 :] == 255).all()


def test_the_command_writes_a_picture(tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt", input_size=64)
    write_image(tmp_path / "photo.jpg", 100, 150, (90, 120, 200))
    result = tool("spp_cls.evaluation.show", "best.ckpt", "photo.jpg", "out=a.png", "scale=300")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert f"{picture.width} x {picture.height} pixels: a.png" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best.ckpt"], "name a network and an image"),
        (["best.ckpt", "nowhere.jpg"], "there is no image nowhere.jpg"),
        (
            ["best.ckpt", "photo.jpg", "channel=64"],
            "channel 64 is not among the 64 of the map; choose one from 0 to 63",
        ),
        (["best.ckpt", "photo.jpg", "scale=100"], "scale is a whole number from 224"),
        (["plain.ckpt", "photo.jpg"], "the network has no SPP"),
        (["best.ckpt", "photo.jpg", "out=a.svg"], "out=a.svg: the picture is a PNG; give it a name that ends in .png"),
        (["best.ckpt", "photo.png", "out=./photo.png"], "IMAGE and out name one file, ./photo.png; name another file"),
        (["best.ckpt", "photo.jpg", "out=no/folder/a.png"], "cannot write no/folder/a.png: No such file or directory"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path, tool: Tool) -> None:
    write_checkpoint(tmp_path / "best.ckpt", input_size=64)
    write_checkpoint(tmp_path / "plain.ckpt", pooling="none", input_size=64)
    write_image(tmp_path / "photo.jpg", 100, 150, (90, 120, 200))
    write_image(tmp_path / "photo.png", 100, 150, (90, 120, 200))
    assert message in error_of(tool("spp_cls.evaluation.show", *arguments))
    assert not (tmp_path / "views.png").exists()


def test_tensorboard_gets_one_picture_a_run(image_folder: Path, tmp_path: Path, command: Command) -> None:
    keys = ("data=imagefolder", "data.root=images", "data.batch_size=8", "data.num_workers=0", "model=zf5_tiny")
    result = command(
        "train.py",
        *keys,
        "model.input_size=64",
        "model.hidden=[16,16]",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "name=a",
    )
    assert result.returncode == 0, result.stderr
    events = EventAccumulator(str(tmp_path / "runs/a/tensorboard"), size_guidance={"images": 0}).Reload()
    (event,) = events.Images("views")
    assert (event.step, event.height) == (1, TOP + SIDE + GAP)


def test_a_network_without_windows_is_refused() -> None:
    with pytest.raises(UserError, match="the network has no SPP"):
        draw_views(spp_cls.build_net("zf5_tiny", "none").eval(), np.zeros((100, 100, 3), np.uint8))
