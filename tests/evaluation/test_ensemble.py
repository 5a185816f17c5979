"""eval.py on several checkpoints, and on the mean of their scores."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Command, Result, error_of, write_checkpoint

DATA = (
    "data=imagefolder",
    "data.root=images",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "protocol=[crop1,full1]",
)


@pytest.fixture
def runs(image_folder: Path, tmp_path: Path) -> list[str]:
    names = ["runs/a/best.ckpt", "runs/b/best.ckpt", "runs/c/best.ckpt"]
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        write_checkpoint(tmp_path / name, class_names=("blue", "green", "red"))
    return names


def read_scores(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the score of each class, by protocol and image."""
    with path.open(newline="") as file:
        return {
            (row["protocol"], row["image"]): {row[f"class{k}"]: float(row[f"score{k}"]) for k in (1, 2, 3)}
            for row in csv.DictReader(file)
        }


def rows_of(result: Result) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])["rows"]


def test_an_ensemble_has_the_mean_of_its_members_scores(runs: list[str], tmp_path: Path, command: Command) -> None:
    sums: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for number, name in enumerate(runs):
        rows_of(command("eval.py", f"ckpt={name}", *DATA, f"predictions={number}.csv"))
        for image, scores in read_scores(tmp_path / f"{number}.csv").items():
            for each, score in scores.items():
                sums[image][each] += score
    rows = rows_of(command("eval.py", f"ckpt=[{','.join(runs)}]", *DATA, "ensemble=true", "predictions=new/all.csv"))
    found = read_scores(tmp_path / "new/all.csv")
    assert found.keys() == sums.keys()
    for image, scores in found.items():
        # The files have six digits.
        assert scores == pytest.approx({each: total / 3 for each, total in sums[image].items()}, abs=3e-6)
    # The score of an image's own class is highest where it is right.
    wrong = [
        max(scores, key=scores.get) != image.split("/")[0] for (name, image), scores in found.items() if name == "full1"
    ]  # type: ignore[arg-type]
    assert [row["networks"] for row in rows] == [1] * 6 + [3] * 2
    assert rows[-1]["top1_error"] == pytest.approx(100 * np.mean(wrong))
    assert set(rows[-1]["checkpoint"].split(" + ")) == set(runs)
    assert rows[-1]["net"] == "zf5"
    assert rows[-1]["parameters"] == 3 * rows[0]["parameters"]


def test_what_has_rows_is_not_tested_again(runs: list[str], tmp_path: Path, command: Command) -> None:
    first = rows_of(command("eval.py", "ckpt=runs", *DATA, "out=all.csv"))
    assert len(first) == 6
    # Only the ensemble is new; it does not depend on where the files are.
    second = rows_of(command("eval.py", "ckpt=runs", *DATA, "out=all.csv", "ensemble=true"))
    assert [row["networks"] for row in second] == [3, 3]
    # The order of its networks does not count either.
    backwards = f"ckpt=[{','.join(runs[::-1])}]"
    assert rows_of(command("eval.py", backwards, *DATA, "out=all.csv", "ensemble=true")) == []
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 8
    # But a checkpoint that is named by itself is, however its path is written.
    for path in (runs[0], f"./{runs[0]}"):
        assert len(rows_of(command("eval.py", f"ckpt={path}", *DATA, "out=all.csv"))) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["ckpt=runs/a/best.ckpt", "ensemble=true"], "ensemble=true averages several networks, and ckpt has 1"),
        (["ckpt=[]"], "ckpt is a path or a list of paths"),
        (["ckpt=3"], "ckpt is a path or a list of paths"),
        (["ckpt=[runs/a/best.ckpt,other.ckpt]", "ensemble=true"], "networks of one ensemble take crops of one size"),
        (["ckpt=[runs/a/best.ckpt,plain.ckpt]", "ensemble=true"], "full1 needs a net that takes any size"),
        (["ckpt=runs", "predictions=a.csv"], "predictions are for one checkpoint, and ckpt has 3"),
    ],
)
def test_errors_are_one_line(keys: list[str], message: str, runs: list[str], tmp_path: Path, command: Command) -> None:
    names = ("blue", "green", "red")
    write_checkpoint(tmp_path / "other.ckpt", class_names=names, input_size=96)
    write_checkpoint(tmp_path / "plain.ckpt", class_names=names, pooling="none")
    assert message in error_of(command("eval.py", *keys, *DATA))
