"""What is no regular file, or has an odd name or shape: each command says so in one line, and opens none of it."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from spp_cls.cli.files import replace_atomically
from spp_cls.evaluation.rows import Row, read_csv
from tests.conftest import Command, Tool, error_of, write_checkpoint, write_image, write_image_folder

# Bytes that no UTF-8 text has.
ODD_NAME = os.fsdecode(b"caf\xe9.jpg")
LONG_NAME = "a" * 300 + ".jpg"

EVAL = ("ckpt=best.ckpt", "data=imagefolder", "data.root=images", "data.num_workers=0", "protocol=crop1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint, images and an image alone."""
    write_checkpoint(tmp_path / "best.ckpt")
    write_image_folder(tmp_path / "images", train=1, val=1)
    write_image(tmp_path / "photo.jpg", 80, 90, (200, 40, 40))
    return tmp_path


@pytest.fixture(params=["FIFO", "socket", "device", "folder"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Something at a path that is not a file. Opening the FIFO would wait for ever, so that a writer saves the test."""
    path = tmp_path / "odd.jpg"
    if request.param == "FIFO":
        os.mkfifo(path)
        saved = threading.Timer(20, lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)))
        saved.start()
        yield path
        assert saved.is_alive(), "the FIFO was opened"
        saved.cancel()
        return
    if request.param == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(tmp_path)
            listener.bind("odd.jpg")
            yield path
        return
    if request.param == "device":
        # Without an end.
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    yield path


def test_predict_opens_only_files(folder: Path, no_file: Path, tool: Tool) -> None:
    message = error_of(tool("spp_cls.predict", "best.ckpt", "odd.jpg"))
    assert "there is no image" in message
    assert "odd.jpg" in message
    message = error_of(tool("spp_cls.predict", "odd.jpg", "photo.jpg"))
    assert "there is no " in message
    # In a folder it is passed over.
    result = tool("spp_cls.predict", "best.ckpt", ".", "format=json")
    assert result.returncode == 0, result.stderr
    assert "odd.jpg" not in result.stdout


def test_testing_and_packing_open_only_files(folder: Path, no_file: Path, tool: Tool, command: Command) -> None:
    no_file.rename(folder / "images/val/red/odd.jpg")
    message = error_of(command("eval.py", *EVAL))
    assert "cannot read the image images/val/red/odd.jpg: it is " in message
    message = error_of(tool("spp_cls.data.pack", "data.root=images", "out=packed"))
    assert "cannot read the image images/val/red/odd.jpg: it is " in message
    (folder / "images/val/red/odd.jpg").rename(no_file)


def test_testing_whole_images_opens_only_files(folder: Path, command: Command) -> None:
    # Sizes are read from the headers of files first, in another place.
    (folder / "images/val/red/odd.jpg").symlink_to("/dev/zero")
    assert "odd.jpg: it is a device" in error_of(command("eval.py", *EVAL, "protocol=full1"))


@pytest.mark.parametrize("name", ["nowhere", "model.onnx", "model.pt2", LONG_NAME, ODD_NAME])
def test_networks_that_are_no_files(name: str, folder: Path, tool: Tool) -> None:
    (folder / "loop").symlink_to("loop")
    for path in (name, f"loop/{name}"):
        assert "there is no " in error_of(tool("spp_cls.predict", path, "photo.jpg"))
        assert "there is no checkpoint" in error_of(tool("spp_cls.export", path, "out=x"))


@pytest.mark.parametrize("name", [LONG_NAME, "loop"])
def test_images_and_data_sets_by_names_that_lead_nowhere(name: str, folder: Path, tool: Tool, command: Command) -> None:
    (folder / "loop").symlink_to("loop")
    assert "there is no image" in error_of(tool("spp_cls.predict", "best.ckpt", name))
    assert "there is no folder" in error_of(tool("spp_cls.data.pack", f"data.root={name}", "out=packed"))
    assert "cannot use" in error_of(tool("spp_cls.data.pack", "data.root=images", f"out={name}"))
    assert "there is no checkpoint" in error_of(command("eval.py", f"ckpt={name}", *EVAL[1:]))
    assert "there is no folder" in error_of(command("eval.py", *EVAL[:2], f"data.root={name}"))


def test_a_class_folder_that_is_a_loop_of_links(folder: Path, tool: Tool, command: Command) -> None:
    (folder / "images/val/loop").symlink_to("loop")
    for result in (command("eval.py", *EVAL), tool("spp_cls.data.pack", "data.root=images", "out=packed")):
        message = error_of(result)
        assert "val/loop: Too many levels of symbolic links; mend or remove it" in message


def test_a_name_that_is_not_utf_8_is_kept_byte_for_byte(folder: Path, tool: Tool, command: Command) -> None:
    os.rename(folder / "photo.jpg", folder / "images/val/red" / ODD_NAME)
    result = command("eval.py", *EVAL, "predictions=predictions.csv")
    assert result.returncode == 0, result.stderr
    assert b"crop1,red/caf\xe9.jpg,red" in (folder / "predictions.csv").read_bytes()
    # On the terminal, and in JSON, it is printed with backslashes.
    path = f"images/val/red/{ODD_NAME}"
    table = tool("spp_cls.predict", "best.ckpt", path)
    assert table.returncode == 0, table.stderr
    assert "images/val/red/caf\\udce9.jpg" in table.stdout
    (line,) = tool("spp_cls.predict", "best.ckpt", path, "format=json").stdout.splitlines()
    assert json.loads(line)["image"] == path
    # A packed data set has names as text.
    message = error_of(tool("spp_cls.data.pack", "data.root=images", "out=packed"))
    assert "is not UTF-8, as names in packed data are; rename it" in message


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_strip_is_named(shape: tuple[int, int], folder: Path, tool: Tool, command: Command) -> None:
    Image.new("RGB", shape).save(folder / "images/val/red/strip.png")
    message = f"images/val/red/strip.png: {shape[0]} x {shape[1]} pixels, over 256 times longer than wide"
    assert message in error_of(tool("spp_cls.predict", "best.ckpt", "images/val/red/strip.png"))
    assert message in error_of(tool("spp_cls.data.pack", "data.root=images", "out=packed", "min_side=64"))
    for protocol in ("crop1", "full1"):
        assert message in error_of(command("eval.py", *EVAL, f"protocol={protocol}"))


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/null"])
def test_results_are_never_written_to_a_device(device: str, folder: Path, tool: Tool, command: Command) -> None:
    assert "it is a device" in error_of(command("eval.py", *EVAL, f"out={device}"))
    kind = os.stat(device).st_mode
    message = error_of(command("eval.py", *EVAL, f"predictions={device}"))
    assert f"cannot write {device}: it is a device" in message
    for out in (device, f"{device}/packed"):
        assert f"cannot use {device}" in error_of(tool("spp_cls.data.pack", "data.root=images", f"out={out}"))
    # As root, a file could be put in its place.
    assert os.stat(device).st_mode == kind


def test_a_file_is_not_put_in_the_place_of_something_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is no file"), replace_atomically(tmp_path / "fifo"):
        pytest.fail("it began to write")
    assert (tmp_path / "fifo").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize(
    "content", [b"\x00" * 100, b"protocol,views\r\n", b"a" * 200_000, "HEADER\r\ncrop1,1,x", "HEADER\r\n" + "x," * 22]
)
def test_damaged_results_are_refused(content: bytes | str, tmp_path: Path, folder: Path, command: Command) -> None:
    if isinstance(content, str):
        content = content.replace("HEADER", ",".join(field.name for field in fields(Row))).encode()
    (tmp_path / "results.csv").write_bytes(content)
    message = error_of(command("eval.py", *EVAL, "out=results.csv"))
    assert "results.csv" in message
    assert (tmp_path / "results.csv").read_bytes() == content
    with pytest.raises(ValueError, match=r"results\.csv"):
        read_csv(tmp_path / "results.csv")
