"""Rows of results: what they were measured on, files that two commands write to, and files of 0.1."""

import csv
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spp_cls import UserError
from spp_cls.data.loading.workers import count_cpus
from spp_cls.data.sources import identify_source, open_source
from spp_cls.evaluation.images import get_cuts, group_by_shape, load_cuts
from spp_cls.evaluation.protocols import PROTOCOLS
from spp_cls.evaluation.rows import ROW_FILE, append_csv, check_csv, describe_hardware, read_csv
from spp_cls.evaluation.tables import build_measured_table, build_paper_tables, read_results
from tests.conftest import CLASSES, Command, Tool, error_of, write_checkpoint, write_image, write_image_folder
from tests.evaluation.test_tables import RESULTS, row
from tests.test_train_and_eval import rows_of

DIGEST = {"data_digest": "d"}
COLUMNS = ROW_FILE.columns


def test_eight_processes_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    children = []
    for number in range(8):
        if (child := os.fork()) == 0:
            for _ in range(5):
                append_csv([row(data=f"data{number}")], path)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    names = [each["data"] for each in read_csv(path)]
    assert sorted(names) == sorted(f"data{number}" for number in range(8) for _ in range(5))
    assert path.read_text().count("protocol,views") == 1


@pytest.mark.parametrize("other", ["same.csv", "./same.csv", "link.csv"])
def test_rows_and_predictions_are_not_written_to_one_file(other: str, tmp_path: Path, command: Command) -> None:
    append_csv([row()], tmp_path / "same.csv")
    (tmp_path / "link.csv").symlink_to("same.csv")
    before = (tmp_path / "same.csv").read_bytes()
    keys = ("data=imagefolder", "data.root=images", "protocol=crop1", "data.num_workers=0")
    write_checkpoint(tmp_path / "a.ckpt", class_names=CLASSES)
    write_image_folder(tmp_path / "images")
    message = error_of(command("eval.py", "ckpt=a.ckpt", *keys, "out=same.csv", f"predictions={other}"))
    assert message == f"error: out and predictions name one file, {other}; name another file for one of them"
    assert (tmp_path / "same.csv").read_bytes() == before


@pytest.mark.parametrize("other", ["a.ckpt", "old.csv"])
def test_predictions_do_not_overwrite_other_files(other: str, tmp_path: Path, command: Command) -> None:
    append_csv([row()], tmp_path / "old.csv")
    write_checkpoint(tmp_path / "a.ckpt", class_names=CLASSES)
    write_image_folder(tmp_path / "images")
    before = (tmp_path / other).read_bytes()
    keys = ("data=imagefolder", "data.root=images", "protocol=crop1", "data.num_workers=0")
    message = error_of(command("eval.py", "ckpt=a.ckpt", *keys, f"predictions={other}"))
    assert message == f"error: {other} holds something else than predictions; choose another file with predictions=PATH"
    assert (tmp_path / other).read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("ckpt=", "out=new/a.csv"), "ckpt is empty; give a checkpoint, or a folder of runs"),
        (("ckpt=[a.ckpt,'']", "out=new/a.csv"), "ckpt is empty; "),
        (("ckpt=nowhere.ckpt", "out=new/a.csv", "predictions=other/p.csv"), "there is no checkpoint nowhere.ckpt; "),
        (("ckpt=a.ckpt", "out="), "out is empty; name a file, or leave out out"),
        (("ckpt=a.ckpt", "flips=false"), "flips are for protocol=custom; add custom to protocol or leave flips out"),
        (("ckpt=a.ckpt", "positions=[full]"), "positions are for protocol=custom; "),
        (("ckpt=a.ckpt", "protocol=[all,crop1]"), "protocol=all is every protocol; leave the others out"),
        (("ckpt=a.ckpt", "--multirun"), "--multirun is for train.py; eval.py takes lists, such as "),
        (("ckpt=a.ckpt", "out=a.ckpt/b/c.csv"), "cannot write a.ckpt/b/c.csv: Not a directory; "),
        (
            ("ckpt=grey.ckpt", "out=new/a.csv", "predictions=other/p.csv"),
            "the network has 1 input channels; the protocols are for RGB images",
        ),
        (
            ("ckpt=wild.ckpt", "out=new/a.csv", "predictions=other/p.csv"),
            "under crop1 are not finite: the network's values overflow; give another checkpoint",
        ),
    ],
)
def test_what_cannot_be_tested_is_one_line_and_writes_nothing(
    keys: tuple[str, ...], message: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    write_checkpoint(tmp_path / "a.ckpt", class_names=CLASSES)
    write_checkpoint(tmp_path / "grey.ckpt", class_names=CLASSES, in_chans=1, mean=(100.0,))
    write_checkpoint(tmp_path / "wild.ckpt", class_names=CLASSES)
    wild = torch.load(tmp_path / "wild.ckpt")
    for layer in ("hidden2", "classifier"):
        wild["state_dict"][f"net.head.{layer}.weight"] *= 1e30
    torch.save(wild, tmp_path / "wild.ckpt")
    before = set(tmp_path.iterdir())
    data = ("data=imagefolder", "data.root=images", "data.num_workers=0")
    more = () if "--multirun" in keys or any("protocol" in each for each in keys) else ("protocol=crop1",)
    assert message in error_of(command("eval.py", *data, *more, *keys))
    assert set(tmp_path.iterdir()) == before


def test_names_that_are_not_text_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for number in range(2):
        append_csv([row(checkpoint=f"caf\udce9/{number}.ckpt")], path)
    assert [each["checkpoint"] for each in read_csv(path)] == ["caf\udce9/0.ckpt", "caf\udce9/1.ckpt"]
    assert b"caf\xe9/0.ckpt" in path.read_bytes()


def test_the_hardware_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    # Two of eight GPUs, and none of them.
    assert describe_hardware(torch.device("cuda:1"), 2) == "2 x GPU of cuda:1"
    assert describe_hardware(torch.device("cpu")).startswith(f"{count_cpus()} CPU cores, ")


def test_files_without_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    old = [name for name in COLUMNS if name not in ("networks", "width", "seed", "data_digest", "stored_side")]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, old)
        writer.writeheader()
        writer.writerow(dict.fromkeys(old, "7"))
    (found,) = read_csv(path)
    assert (found["data"], found["data_digest"], found["stored_side"]) == ("7", "", "")
    append_csv([row(**DIGEST)], path)
    first, second = read_csv(path)
    assert first == found
    assert (second["data"], second["data_digest"]) == ("imagenet", "d")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(COLUMNS) + "\n1,2\n", ",".join(COLUMNS) + "\n" + "1," * 99])
def test_files_that_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=r"has other columns than results|result 1 of .* is damaged"):
        append_csv([row()], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == text


def test_what_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/full", tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="it is a "):
            append_csv([row()], path)
        with pytest.raises(UserError, match="it is a "):
            read_csv(path)
    (tmp_path / "rows.csv").touch()
    (tmp_path / "link.csv").symlink_to("rows.csv")
    append_csv([row()], tmp_path / "link.csv")
    assert len(read_csv(tmp_path / "rows.csv")) == 1
    assert (tmp_path / "link.csv").is_symlink()


def test_links_to_files_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("new/rows.csv")
    check_csv(tmp_path / "link.csv")
    append_csv([row()], tmp_path / "link.csv")
    assert len(read_csv(tmp_path / "new/rows.csv")) == 1
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    for use in (lambda path: append_csv([row()], path), check_csv):
        with pytest.raises(UserError, match=r"cannot write .*circle\.csv: .*; choose another file with out=PATH"):
            use(tmp_path / "circle.csv")


def test_a_data_set_is_known_by_its_classes_labels_and_names(tmp_path: Path, tool: Tool) -> None:
    a = write_image_folder(tmp_path / "a/images", train=1, val=2)
    b = write_image_folder(tmp_path / "b/images", train=1, val=2)

    def identify(root: Path, kind: str = "imagefolder") -> object:
        return identify_source(kind, root, open_source(kind, root, "val"))

    first = identify(a)
    assert first == identify(b)
    for out, *options in (("same",), ("small", "min_side=64"), ("smaller", "min_side=32")):
        arguments = ("data=imagefolder", f"data.root={a}", f"out={tmp_path / out}", *options)
        assert tool("spp_cls.data.pack", *arguments).returncode == 0
    assert identify(tmp_path / "same", "packed") == first
    small, smaller = (identify(tmp_path / name, "packed") for name in ("small", "smaller"))
    assert (small.name, small.stored_side, smaller.stored_side) == ("images", 64, 32)  # type: ignore[attr-defined]
    write_image(b / "val/red/9.jpg", 80, 80, (1, 2, 3))
    digests = [each.digest for each in (first, small, smaller, identify(b))]  # type: ignore[attr-defined]
    shutil.move(a / "val/red/0.jpg", a / "val/blue/9.jpg")
    digests.append(identify(a).digest)  # type: ignore[attr-defined]
    for split in ("train", "val"):
        shutil.move(a / split / "red", a / split / "rose")
    digests.append(identify(a).digest)  # type: ignore[attr-defined]
    assert len(set(digests)) == 6


def test_a_sweep_tells_data_sets_and_precisions_apart(tmp_path: Path, command: Command) -> None:
    write_checkpoint(tmp_path / "runs/a/best.ckpt", class_names=CLASSES)
    for name, count in (("a", 1), ("b", 2)):
        write_image_folder(tmp_path / name / "images", train=1, val=count)

    def test(*arguments: str) -> list[tuple[str, int]]:
        more = ("ckpt=runs", "data=imagefolder", "data.num_workers=0", "protocol=[crop1]", "out=rows.csv")
        return [(each["data"], each["images"]) for each in rows_of(command("eval.py", *more, *arguments))]

    assert test("data.root=a/images") == [("images", 3)]
    assert test("data.root=b/images") == [("images", 6)]
    assert test("data.root=a/images", "trainer.precision=bf16-mixed") == [("images", 3)]
    assert test("data.root=a/images") == test("data.root=b/images") == []
    # Other names of what was computed: fp16 is not for CPUs.
    cpu = ("data.root=a/images", "trainer.accelerator=cpu")
    assert test(*cpu, "trainer.precision=32") == test(*cpu, "trainer.precision=16-mixed") == []
    assert [each["precision"] for each in read_csv(tmp_path / "rows.csv")] == ["32-true", "32-true", "bf16-mixed"]
    custom = ("data.root=a/images", "protocol=custom", "positions=[full]")
    assert test(*custom, "scales=[256]") == test(*custom, "scales=[300]") == [("images", 3)]
    assert test(*custom, "scales=[256]") == []


def test_a_sweep_tests_each_network_under_the_protocols_that_it_can_run(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    write_checkpoint(tmp_path / "runs/a/best.ckpt", pooling="none", input_size=64, class_names=CLASSES)
    write_checkpoint(tmp_path / "runs/b/best.ckpt", pooling="none", input_size=64, class_names=("x", "y", "z"))
    write_checkpoint(tmp_path / "runs/c/best.ckpt", input_size=64, class_names=CLASSES)
    more = ("data=imagefolder", "data.root=images", "data.num_workers=0", "protocol=[crop1,full1,map10]")
    result = command("eval.py", "ckpt=runs", *more)
    tested = [(each["checkpoint"], each["protocol"]) for each in rows_of(result)]
    assert tested == [
        ("runs/a/best.ckpt", "crop1"),
        *(("runs/c/best.ckpt", name) for name in ("crop1", "full1", "map10")),
    ]
    lines = [line for line in result.stderr.splitlines() if "tested" in line]
    assert lines[0].startswith("tested in part: runs/a/best.ckpt, as full1, map10 need a net that takes any size")
    assert lines[1].startswith("not tested: runs/b/best.ckpt, as class 0")
    of_maps = [each.replace("[crop1,full1,map10]", "[full1]") for each in more]
    shutil.rmtree(tmp_path / "runs/c")
    refused = command("eval.py", "ckpt=runs", *of_maps)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        1,
        "error: nothing below runs can be tested like this; choose other data or protocols",
    )
    # What is named must run them all.
    assert "full1, map10 need a net that takes any size" in error_of(command("eval.py", "ckpt=runs/a/best.ckpt", *more))


def test_a_sweep_leaves_out_runs_of_other_data_sets(image_folder: Path, tmp_path: Path, command: Command) -> None:
    write_checkpoint(tmp_path / "runs/mine/best.ckpt", class_names=CLASSES)
    write_checkpoint(tmp_path / "runs/other/best.ckpt", class_names=("blue", "green", "grey"))
    more = ("data=imagefolder", "data.root=images", "data.num_workers=0", "protocol=[crop1]", "out=rows.csv")
    result = command("eval.py", "ckpt=runs", *more)
    assert [each["checkpoint"] for each in rows_of(result)] == ["runs/mine/best.ckpt"]
    assert (
        "not tested: runs/other/best.ckpt, as class 2 of images/val is red, and grey in the checkpoint;"
        in result.stderr
    )
    # What is named must fit, and so must one of a folder.
    for ckpt in ("ckpt=[runs/mine/best.ckpt,runs/other/best.ckpt]", "ckpt=runs/other"):
        assert "class 2 of images/val is red, and grey in the checkpoint" in error_of(command("eval.py", ckpt, *more))
    assert len(read_csv(tmp_path / "rows.csv")) == 1


def test_packed_imagenet_stands_beside_the_papers_errors_where_it_is_sharp_enough(tmp_path: Path) -> None:
    (tmp_path / "paper.csv").write_bytes((RESULTS / "paper.csv").read_bytes())
    overfeat = {"net": "overfeat7", "protocol": "map98", "top1_error": 28.0}
    sharp = [row(stored_side=256, top1_error=34.0), row(**overfeat)]
    blurred = [row(stored_side=255), row(**overfeat, stored_side=256)]
    for rows, found in ((blurred, []), (sharp, ["34.00", "28.00"])):
        append_csv(rows, tmp_path / "ours.csv")
        paper, ours = read_results(tmp_path)
        assert [cells[3] for _, _, table in build_paper_tables(paper, ours) for cells in table if cells[3]] == found
    measured = [cells[0] for cells in build_measured_table(paper, ours)[2]]
    assert measured == ["imagenet, stored at 255", "imagenet, stored at 256"]


@pytest.mark.parametrize("key", ["data.batch_size=3", "data.cache=device", "data.batch_sise=3"])
def test_keys_of_training_are_refused_in_testing(key: str, tmp_path: Path, command: Command) -> None:
    line = error_of(command("eval.py", "ckpt=best.ckpt", "data.root=images", key))
    assert line.startswith(f"error: there is no key {key.split('=', maxsplit=1)[0]}; ")


class SlowSource:
    """A source whose reads hang."""

    root = Path("slow")
    class_names = CLASSES
    labels: NDArray[np.int64] = np.zeros(4, np.int64)

    def __len__(self) -> int:
        return 4

    def read(self, index: int) -> bytes:
        # Three times its limit; what is left of it is waited for at the end of the test.
        time.sleep(3)
        return b""

    def size(self, index: int) -> tuple[int, int]:
        return (300, 200) if index == 0 else len(self.read(index)) * (1, 1)  # type: ignore[return-value]

    def name(self, index: int) -> str:
        return str(index)

    location = name


def test_a_read_that_hangs_ends() -> None:
    source, cuts = SlowSource(), get_cuts(PROTOCOLS["full1"].views, 64)
    message = "no batch came for 1 seconds: reading slow hangs; check its disk or network"
    with pytest.raises(UserError, match=message):
        group_by_shape(source, range(4), cuts, 64, 10**6, num_workers=1, timeout=1)
    with pytest.raises(UserError, match=message):
        next(load_cuts(source, [0], cuts, 64, "bilinear", 10**6, num_workers=1, timeout=1))
