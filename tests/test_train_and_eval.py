"""The command lines, as users type them."""

import csv
import ctypes
import json
import os
import re
import resource
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from tests.conftest import CLASSES, Command, Result, error_of, run_here, run_process, write_checkpoint, write_image
from tests.server import Server

TINY = (
    "data=imagefolder", "data.batch_size=8", "data.num_workers=2", "model.input_size=64", "model.hidden=[16,16]",
    "name=small",
)  # fmt: skip


def rows_of(result: Result) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])["rows"]


@pytest.fixture(scope="module")
def trained(shared_image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and the folder it was started in."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = (*TINY, f"data.root={shared_image_folder}", "trainer.max_epochs=2")
    with pytest.MonkeyPatch.context() as patch, (folder / "stdout").open("w") as file, redirect_stdout(file):
        assert run_here(patch, folder, "train.py", *arguments) == 0
    return folder


def test_training_says_what_it_does_and_what_to_type_next(trained: Path, command: Command) -> None:
    printed = (trained / "stdout").read_text()
    assert "zf5 at width 0.25, SPP (6, 3, 2, 1)" in printed
    assert "24 images to train on, 9 to validate, 3 classes" in printed
    assert "images/s=" in printed
    assert "top-1 error=" in printed
    assert "tensorboard --logdir runs/small/tensorboard" in printed
    # The printed command, typed as it is.
    (line,) = re.findall(r"python (eval\.py .*)", printed)
    script, *arguments = shlex.split(line)
    result = command(script, *arguments, folder=trained)
    assert [row["protocol"] for row in rows_of(result)] == ["crop1", "crop10", "full1", "map10"]


def test_eval_counts_what_training_counted(trained: Path, shared_image_folder: Path, command: Command) -> None:
    checkpoint = torch.load(trained / "runs/small/last.ckpt", weights_only=True)
    result = command(
        "eval.py",
        f"ckpt={trained}/runs/small/last.ckpt",
        "data=imagefolder",
        f"data.root={shared_image_folder}",
        "data.num_workers=0",
        "protocol=[crop1,full1]",
    )
    crop1, _ = rows_of(result)
    assert crop1["top1_error"] == checkpoint["validation_errors"][-1]
    assert (crop1["images"], crop1["views"], crop1["sizes"], crop1["pooling"]) == (9, 1, "alternate", "spp")
    assert re.search(r"protocol +views +top-1 error % +top-5 error % +images", result.stdout)


def test_predictions_recompute_the_rows(
    trained: Path, shared_image_folder: Path, tmp_path: Path, command: Command
) -> None:
    data = ("data=imagefolder", f"data.root={shared_image_folder}", "data.num_workers=0")
    files = ("predictions=predictions.csv", "out=rows.csv")
    rows = rows_of(command("eval.py", f"ckpt={trained}/runs/small/best.ckpt", *data, *files, "protocol=[crop1,map10]"))
    with (tmp_path / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 18
    for row in rows:
        own = [p for p in predictions if p["protocol"] == row["protocol"]]
        wrong = sum(p["class1"] != p["label"] for p in own)
        assert row["top1_error"] == 100 * wrong / 9
        assert {p["image"].split("/")[0] for p in own} == {p["label"] for p in own}
    with (tmp_path / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["top1_error"]) for row in written] == [row["top1_error"] for row in rows]


def test_a_sweep_skips_what_exists(trained: Path, shared_image_folder: Path, tmp_path: Path, command: Command) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        checkpoint = torch.load(trained / "runs/small/best.ckpt", weights_only=True)
        checkpoint["state_dict"]["net.head.classifier.bias"] += name == "b"
        torch.save(checkpoint, tmp_path / "runs" / name / "best.ckpt")
    data = ("data=imagefolder", f"data.root={shared_image_folder}", "data.num_workers=0", "out=rows.csv")
    first = rows_of(command("eval.py", "ckpt=runs/a", "protocol=[crop1]", *data))
    assert [row["checkpoint"] for row in first] == ["runs/a/best.ckpt"]
    second = rows_of(command("eval.py", "ckpt=runs", "protocol=all", *data))
    tested = [(row["checkpoint"], row["protocol"]) for row in second]
    everything = ["crop1", "crop10", "full1", "full2", "map10", "map96", "map98", "warp1"]
    assert tested == [("runs/a/best.ckpt", name) for name in everything[1:]] + [
        ("runs/b/best.ckpt", name) for name in everything
    ]
    assert {row["data"] for row in second} == {"images"}
    agreement = {row["protocol"]: row["agreement_with_crop10"] for row in second}
    assert agreement["crop10"] == 100
    assert 0 <= agreement["map10"] <= 100
    assert rows_of(command("eval.py", "ckpt=runs", "protocol=all", *data)) == []
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16


def test_the_same_command_resumes(trained: Path, shared_image_folder: Path, tmp_path: Path, command: Command) -> None:
    arguments = (*TINY, f"data.root={shared_image_folder}")

    def train(epochs: int, *more: str) -> Result:
        return command("train.py", *arguments, f"trainer.max_epochs={epochs}", *more)

    shutil.copytree(trained / "runs", tmp_path / "runs")
    folder = tmp_path
    before = torch.load(folder / "runs/small/last.ckpt", weights_only=True)["validation_errors"]
    assert len(before) == 2
    result = train(3)
    assert result.returncode == 0, result.stderr
    assert "Epoch 2" in result.stdout
    assert "Epoch 1:" not in result.stdout
    after = torch.load(folder / "runs/small/last.ckpt", weights_only=True)["validation_errors"]
    assert len(after) == 3
    assert after[:2] == before
    assert "was started with other keys (levels was (6, 3, 2, 1), is (4, 2, 1))" in error_of(
        train(3, "model.levels=[4,2,1]")
    )


def remove_classes(root: Path) -> None:
    (root / "train").rename(root / "x")
    (root / "train").mkdir()


def stranger_in_val(root: Path) -> None:
    write_image(root / "val/pink/0.jpg", 80, 80, (250, 150, 150))


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (None, ["data.root=/nowhere"], "there is no folder /nowhere; set data.root"),
        (remove_classes, [], "has no class folders"),
        (stranger_in_val, [], "class pink is in"),
        (None, ["data.bacth_size=4"], "there is no key data.bacth_size"),
        (None, ["run_folder=images/train/red/0.jpg"], "cannot write the run folder images/train/red/0.jpg"),
        (
            None,
            ["data.batch_size=7", "trainer.devices=2", "trainer.accelerator=cpu"],
            "does not divide by 2 (processes",
        ),
        (None, ["data.batch_size=64"], "24 training images do not fill a batch of 64"),
        (None, ["sizes=[64,16]"], "the smallest side it takes is 23"),
        (None, ["model.pooling=none"], "takes images of 64 x 64 pixels, not 51 x 51"),
        (None, ["sizes=180"], "sizes lists whole numbers of pixels, such as [224,180], up to 10000, not 180"),
        (None, ["sizes=null"], "sizes lists whole numbers of pixels"),
        (None, ["sizes=[64,6.5]"], "sizes lists whole numbers of pixels"),
        (None, ["seed=-1"], "seed is a whole number from 0 to 4294967295, not -1"),
    ],
)
def test_mistakes_in_training(change, overrides: list[str], message: str, image_folder: Path, command: Command) -> None:
    if change:
        change(image_folder)
    assert message in error_of(command("train.py", *TINY, f"data.root={image_folder}", *overrides))


def test_a_full_disk_is_one_line(image_folder: Path, command: Command) -> None:
    # A limit on the size of a file stands for a disk that is full: writing the checkpoint fails.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        result = command("train.py", *TINY, f"data.root={image_folder}", "trainer.max_epochs=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(r"^error: cannot write .*(File too large|No space)", result.stderr.strip().splitlines()[-1])


def without_override() -> None:
    """Take the right to write anywhere from a process of root's; others do not have it."""
    drop_from_bounding_set, dac_override = 24, 1
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.slow
def test_no_permission_for_the_run_folder(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    arguments = (*TINY, f"data.root={image_folder}", "run_folder=locked/run")
    result = run_process(tmp_path, "train.py", *arguments, preexec_fn=without_override)
    assert "cannot write the run folder locked/run: Permission denied" in error_of(result)


def test_damaged_images(image_folder: Path, command: Command, trained: Path) -> None:
    (image_folder / "train/red/3.jpg").write_bytes((image_folder / "train/red/3.jpg").read_bytes()[:1500])
    result = command("train.py", *TINY, f"data.root={image_folder}", "trainer.max_epochs=2")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"cannot decode the image \S+train/red/3\.jpg", result.stdout)) == 1

    bad = image_folder / "val/green/1.jpg"
    bad.write_bytes(bad.read_bytes()[:1500])
    result = command("train.py", *TINY, f"data.root={image_folder}", "trainer.max_epochs=3")
    assert error_of(result).startswith(f"error: cannot decode the image {bad}: ")
    data = ("data=imagefolder", f"data.root={image_folder}", "data.num_workers=2")
    result = command("eval.py", f"ckpt={trained}/runs/small/best.ckpt", *data, "protocol=[crop1]")
    assert error_of(result).startswith(f"error: cannot decode the image {bad}: ")
    assert "rows" not in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ckpt=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        ([], "ckpt is not set"),
        (["ckpt=images/val/red/0.jpg"], "images/val/red/0.jpg is not a checkpoint of spp_cls"),
        (["protocol=[crop2]"], "there is no protocol 'crop2'; choose among crop1, crop10"),
        (["protocol=7"], "protocol is a name or a list of names, such as [crop1,full1], not 7"),
        (["protocol=[crop1,null]"], "protocol is a name or a list of names"),
        (["protocl=[crop1]"], "there is no key protocl"),
        (["data.root=two"], "has 2 classes, the checkpoint 3"),
        (["protocol=custom", "scales=[200]"], "scale 200 is smaller than the window of 224"),
        (["protocol=custom", "scales=[16]", "positions=[full]"], "leaves no cell in the last map"),
        (["scales=[256]"], "scales are for protocol=custom"),
        (["ckpt=images"], "there is no best.ckpt in the folders below images"),
        (["out=images/val/red/0.jpg"], "other columns"),
    ],
)
def test_mistakes_in_testing(
    overrides: list[str], message: str, image_folder: Path, tmp_path: Path, trained: Path, command: Command
) -> None:
    for name in ("blue", "red"):
        write_image(tmp_path / f"two/val/{name}/0.jpg", 80, 80, (1, 2, 3))
    ckpt = [] if not overrides else [f"ckpt={trained}/runs/small/best.ckpt"]
    arguments = [*ckpt, "data=imagefolder", f"data.root={image_folder}", "data.num_workers=0"]
    # A later override of a key takes the place of an earlier one.
    arguments = [a for a in arguments if a.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    assert message in error_of(command("eval.py", *arguments, *overrides))


def test_a_global_batch_that_does_not_divide(image_folder: Path, command: Command) -> None:
    arguments = (*TINY, f"data.root={image_folder}", "trainer.accelerator=cpu", "trainer.devices=3")
    assert "does not divide by 3 (processes" in error_of(command("train.py", *arguments))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=half", "error: trainer.precision is 32-true or bf16-mixed or 16-mixed or "),
        # Its weights are not float32, and the images are.
        ("trainer.precision=bf16-true", "error: trainer.precision is 32-true or bf16-mixed or 16-mixed or "),
        ("trainer.accelerator=abacus", "error: trainer.accelerator is auto or gpu or cuda or cpu, not 'abacus'"),
        ("trainer.accelerator=mps", "error: trainer.accelerator is auto or gpu or cuda or cpu, not 'mps'"),
        ("trainer.devices=-3", "error: trainer.devices is "),
        ("trainer.devices=many", "error: trainer: "),
    ],
)
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_settings_that_lightning_refuses(
    script: str, override: str, message: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    write_checkpoint(tmp_path / "last.ckpt", class_names=CLASSES)
    more = ("name=small", "model.input_size=64") if script == "train.py" else ("ckpt=last.ckpt",)
    arguments = ("data=imagefolder", f"data.root={image_folder}", "trainer.accelerator=cpu", *more, override)
    assert error_of(command(script, *arguments)).startswith(message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_test_as_one(image_folder: Path, tmp_path: Path, server: Server, command: Command) -> None:
    write_checkpoint(tmp_path / "last.ckpt", class_names=CLASSES)
    arguments = (
        "ckpt=last.ckpt", "data=imagefolder", f"data.root={image_folder}", "data.num_workers=0",
        "protocol=[crop10,map10]", "trainer.accelerator=cpu",
    )  # fmt: skip
    alone = rows_of(command("eval.py", *arguments))
    shared = rows_of(server.run(tmp_path, "eval.py", *arguments, "trainer.devices=2", processes=2))
    for key in ("protocol", "top1_error", "top5_error", "images"):
        assert [row[key] for row in shared] == [row[key] for row in alone]
