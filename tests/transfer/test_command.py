"""python -m spp_cls.transfer: its rows against scikit-learn on the files it wrote, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.svm import SVC

from spp_cls.data.sources import open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.transfer.datasets import draw_split, open_transfer_data
from spp_cls.transfer.metrics import compute_11_point_precision
from tests.conftest import REPOSITORY, Tool, error_of, write_checkpoint, write_image_folder
from tests.server import Server
from tests.transfer.data import write_caltech, write_voc

CALTECH = ("data=caltech101", "data.root=.", "draws=2", "train=4", "test=3")
RUN = ("spp_cls.transfer", "ckpt=net.ckpt", "data.num_workers=0", "side=64")
VOC = {
    "train": {"cat": [1, -1, 0, -1, 1, 1], "dog": [-1, 1, 1, -1, -1, 0]},
    "val": {"cat": [1, -1, 1, -1], "dog": [1, -1, -1, 1]},
    "test": {"cat": [-1, 1, 0, -1, 1, -1], "dog": [1, -1, -1, -1, 1, 0]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network that tells colours apart, and Caltech-101 with classes that overlap."""
    torch.manual_seed(0)
    write_checkpoint(tmp_path / "net.ckpt", hidden=(32, 16))
    return write_caltech(tmp_path, images=7, classes=4)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load_normalised(path: Path) -> np.ndarray:
    rows = np.load(path).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_caltech(folder: Path, tool: Tool) -> None:
    files = ("out=results/transfer.csv", "predictions=p.csv", "classes=c.csv", "features=f")
    layers = ("layer=[pool,hidden2,maps:conv4]", "view=[full,crop]")
    result = tool(*RUN, *CALTECH, *layers, *files, f"results={REPOSITORY / 'results'}")
    assert result.returncode == 0, result.stderr
    assert "left out: maps:conv4 of full 64" in result.stdout
    rows = read(folder / "results/transfer.csv")
    places = [(row["layer"], row["view"]) for row in rows]
    assert places == [
        ("pool", "full"),
        ("hidden2", "full"),
        ("pool", "crop"),
        ("hidden2", "crop"),
        ("maps:conv4", "crop"),
    ]
    assert json.loads(result.stdout.splitlines()[-1])["rows"][1]["accuracy"] == float(rows[1]["accuracy"])
    assert {(row["seed"], row["costs"]) for row in rows} == {("0", "1")}
    assert (rows[0]["train_images"], rows[0]["test_images"], rows[0]["draws"], rows[0]["length"]) == (
        "16",
        "12",
        "2",
        "3200",
    )
    features = load_normalised(folder / "f/full-64-pool.npy")
    labels = np.repeat(range(4), 7)
    of_draws, of_classes = [], []
    for draw in range(2):
        split = draw_split(labels, 4, 3, 0, draw)
        scores = np.stack(
            [
                SVC(kernel="linear", C=1.0)
                .fit(features[split.train], labels[split.train] == c)
                .decision_function(features[split.test])
                for c in range(4)
            ],
            axis=1,
        )
        correct = scores.argmax(1) == labels[split.test]
        of_classes.append([correct[labels[split.test] == c].mean() for c in range(4)])
        of_draws.append(100 * np.mean(of_classes[-1]))
    assert float(rows[0]["accuracy"]) == pytest.approx(np.mean(of_draws))
    assert float(rows[0]["accuracy_std"]) == pytest.approx(np.std(of_draws, ddof=1))
    assert [float(value) for value in rows[0]["by_draw"].split()] == pytest.approx(of_draws, abs=1e-4)
    shown = [row for row in read(folder / "c.csv") if (row["layer"], row["view"], row["draw"]) == ("pool", "full", "1")]
    assert [float(row["accuracy"]) for row in shown] == pytest.approx(
        [100 * value for value in of_classes[1]], abs=1e-4
    )
    predictions = [
        row for row in read(folder / "p.csv") if (row["layer"], row["view"], row["draw"]) == ("pool", "full", "1")
    ]
    assert len(predictions) == 12
    found = [row["class1"] == row["label"] for row in predictions]
    assert 100 * np.mean(found) == pytest.approx(of_draws[1])
    assert float(predictions[0]["score1"]) >= float(predictions[0]["score2"])


def test_voc(folder: Path, tool: Tool) -> None:
    write_voc(folder, VOC)
    files = ("out=t.csv", "predictions=p.csv", "classes=c.csv", "features=f")
    result = tool(*RUN, "data=voc2007", "data.root=.", "layer=pool", *files)
    assert result.returncode == 0, result.stderr
    (row,) = read(folder / "t.csv")
    data = open_transfer_data("voc2007", folder)
    features = load_normalised(folder / "f/full-64-pool.npy")
    (split,) = data.splits
    eleven, exact = [], []
    for c in range(2):
        targets = data.targets[:, c]
        train = split.train[targets[split.train] != 0]
        scores = (
            SVC(kernel="linear", C=1.0).fit(features[train], targets[train]).decision_function(features[split.test])
        )
        eleven.append(100 * compute_11_point_precision(scores, targets[split.test]))
        counted = targets[split.test] != 0
        exact.append(100 * average_precision_score(targets[split.test][counted] > 0, scores[counted]))
    assert float(row["map_11"]) == pytest.approx(np.mean(eleven))
    assert float(row["map_exact"]) == pytest.approx(np.mean(exact))
    assert (row["accuracy"], row["accuracy_of_images"], row["draws"]) == ("", "", "1")
    assert [float(each["ap_11"]) for each in read(folder / "c.csv")] == pytest.approx(eleven, abs=1e-4)
    lines = read(folder / "p.csv")
    assert [line["label"] for line in lines] == ["dog", "cat", "(cat)", "", "cat dog", "(dog)"]
    assert {"cat", "dog"} < set(lines[0])


def test_cost_and_side_are_chosen_on_the_validation_part(folder: Path, tool: Tool) -> None:
    def run(*keys: str) -> list[dict[str, str]]:
        (folder / "t.csv").unlink(missing_ok=True)
        result = tool(*RUN, *CALTECH, "layer=hidden2", "features=f", "out=t.csv", *keys)
        assert result.returncode == 0, result.stderr
        return read(folder / "t.csv")

    several = run("side=[64,80]", "C=[0.001,1,100]", "choose_side=true")
    assert [(row["side"], row["is_side_chosen"]) for row in several[:2]] == [("64", "False"), ("80", "False")]
    chosen = several[2]
    assert chosen["is_side_chosen"] == "True"
    by_side = {row["side"]: row["by_draw"].split() for row in several[:2]}
    sides = chosen["side"].split() * (2 if " " not in chosen["side"] else 1)
    assert chosen["by_draw"].split() == [by_side[side][draw] for draw, side in enumerate(sides)]
    # Each draw's cost, alone, gives the same: the test part took no part in the choice.
    for draw, cost in enumerate(several[0]["C"].split() * (2 if " " not in several[0]["C"] else 1)):
        (alone,) = run("side=64", f"C={cost}")
        assert alone["by_draw"].split()[draw] == several[0]["by_draw"].split()[draw]
        assert alone["validation"] == ""


def test_new_weights_an_exported_folder_and_an_image_folder(folder: Path, tool: Tool) -> None:
    assert tool("spp_cls.export", "net.ckpt", "format=safetensors", "out=exported").returncode == 0
    write_image_folder(folder / "mine", train=4, val=2)
    data = ("data=imagefolder", "data.root=mine", "layer=hidden1", "out=t.csv")
    for keys in ((), ("ckpt=exported",), ("untrained=true", "seed=1"), ("untrained=true", "seed=2")):
        result = tool(*RUN, *data, *keys)
        assert result.returncode == 0, result.stderr
    trained, exported, untrained, other = read(folder / "t.csv")
    assert (trained["data"], trained["epochs"], exported["epochs"], untrained["epochs"]) == ("mine", "1", "", "0")
    assert trained["network_sha256"] == exported["network_sha256"]
    assert len({row["network_sha256"] for row in (trained, untrained, other)}) == 3
    assert (trained["train_images"], trained["test_images"]) == ("12", "6")
    assert trained["by_draw"] == exported["by_draw"]
    # A folder for the features of each network.
    assert len(list((folder / "features").iterdir())) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("data.root=results",), "error: there is no folder results; set data.root"),
        (("train=2", "C=[0.1,1]"), "and no class of caltech101 has 3 of them; give more training images"),
        (("train=7",), "has 7 images; 7 to train and one to test are needed"),
        (("layer=[pool,fc6]",), "error: the network has no layer 'fc6'; choose among maps:conv1, "),
        (("side=8", "view=full"), "the smallest side it takes is"),
        (("side=48", "view=crop"), "error: side=48 is smaller than the crop of 64"),
        (("view=full", "layer=maps:conv5"), "maps:conv5 of whole images has no fixed length; take pool"),
        (("C=[]",), "error: C is an empty list; give one value or more, or leave C out"),
        (("layer=[]",), "error: layer is an empty list; "),
        (("side=10001",), "error: side is a list of whole numbers from 1 to 10000"),
        (("results=damaged",), "error: damaged/paper.csv is not the paper's results (score is missing)"),
        (("C=0",), "error: C is a list of numbers above 0"),
        (("ckpt=no.ckpt",), "error: there is no checkpoint no.ckpt"),
        (("layers=pool",), "error: there is no key layers; did you mean layer?"),
        (("out=a.csv", "classes=./a.csv"), "error: out and classes name one file, ./a.csv; name another file"),
        (("classes=a.csv", "predictions=a.csv"), "error: classes and predictions name one file, a.csv; "),
        (("predictions=net.ckpt",), "error: net.ckpt holds something else than predictions; choose another file"),
        (("out=net.ckpt/t.csv",), "error: cannot write net.ckpt/t.csv: "),
        (("trainer.devices=0",), "error: trainer: "),
        (("trainer.devices=5000",), "trainer.devices is a value whose numbers are from -1 to 4096, not 5000"),
        (("model.name=zf5",), "error: give a network: ckpt=PATH, or model.name=NAME"),
        (("model.name=zf5", "untrained=true"), "error: untrained=true is for ckpt=PATH; "),
        (
            ("data=imagefolder", "draws=null", "test=null"),
            "error: train=4 is for data=caltech101; data=imagefolder says",
        ),
        (
            ("data=voc2007", "draws=null", "train=null"),
            "error: test=3 is for data=caltech101; data=voc2007 says itself",
        ),
        (("model.pooling=avg",), "error: model.pooling is for model.name=NAME; ckpt=PATH has a pooling of its own"),
        (("model.pretrained=true",), "error: model.pretrained=true is for model.name=NAME; "),
    ],
)
def test_mistakes(keys: tuple[str, ...], message: str, folder: Path, tool: Tool) -> None:
    (folder / "damaged").mkdir()
    lines = (REPOSITORY / "results/paper.csv").read_text().replace(",score", ",scores")
    (folder / "damaged/paper.csv").write_text(lines)
    assert message in error_of(tool(*RUN, *CALTECH, *keys))
    assert not (folder / "features").exists()


@pytest.mark.parametrize("choice", ["C=[0.1,1]", "choose_side=true"])
@pytest.mark.parametrize("images", [1, 2])
def test_too_few_images_to_choose_on(images: int, choice: str, folder: Path, tool: Tool) -> None:
    write_image_folder(folder / "mine", train=images, val=2)
    message = error_of(tool(*RUN, "data=imagefolder", "data.root=mine", "layer=pool", choice))
    assert "and no class of mine has 3 of them; give more training images of each class" in message
    assert not (folder / "features").exists()


def test_voc_with_a_class_that_train_lacks(folder: Path, tool: Tool) -> None:
    write_voc(folder, {**VOC, "train": {**VOC["train"], "dog": [-1] * 6}})
    message = error_of(tool(*RUN, "data=voc2007", "data.root=.", "layer=pool", "C=[0.1,1]"))
    assert message.startswith("error: class dog of voc2007 needs images of its own, and of others, beside those that ")
    assert not (folder / "features").exists()


def test_a_checkpoint_that_does_not_say_its_epoch(folder: Path, tool: Tool) -> None:
    checkpoint = torch.load(folder / "net.ckpt", weights_only=True)
    del checkpoint["epoch"]
    torch.save(checkpoint, folder / "other.ckpt")
    message = error_of(tool(*RUN, *CALTECH, "layer=pool", "ckpt=other.ckpt"))
    assert message.startswith("error: the checkpoint does not say its epoch; ")


def test_the_precision_is_the_one_that_was_computed(folder: Path, tool: Tool) -> None:
    keys = (*CALTECH, "layer=pool", "features=f", "out=t.csv", "trainer.accelerator=cpu")
    for precision in ("16-mixed", "bf16-mixed"):
        result = tool(*RUN, *keys, f"trainer.precision={precision}")
        assert result.returncode == 0, result.stderr
    assert [row["precision"] for row in read(folder / "t.csv")] == ["bf16-mixed", "bf16-mixed"]


def test_features_that_are_not_finite(folder: Path, tool: Tool) -> None:
    checkpoint = torch.load(folder / "net.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.head.hidden1.weight"] *= 1e38
    torch.save(checkpoint, folder / "wild.ckpt")
    message = error_of(tool(*RUN, *CALTECH, "layer=[pool,hidden1]", "ckpt=wild.ckpt"))
    assert message.startswith("error: hidden1 of ")
    assert ".jpg is not finite: the network's values overflow; give other weights" in message


def test_images_that_were_packed_smaller_have_features_of_their_own(folder: Path, tool: Tool) -> None:
    files = write_image_folder(folder / "mine", train=4, val=2)
    sources = {split: open_source("imagefolder", files, split) for split in ("train", "val")}
    pack(sources, folder / "packed", PackSettings(32), 1, "stop")
    given = (("data=imagefolder", "data.root=mine"), ("data=packed", "data.root=packed"))
    for keys in given:
        result = tool(*RUN, *keys, "layer=pool", "out=t.csv")
        assert result.returncode == 0, result.stderr
    assert [row["stored_side"] for row in read(folder / "t.csv")] == ["", "32"]
    whole, small = sorted((folder / "features").iterdir(), key=lambda path: len(path.name))
    assert small.name == whole.name.replace("mine-", "packed-stored-at-32-quality-90-")
    assert (whole / "full-64-pool.npy").read_bytes() != (small / "full-64-pool.npy").read_bytes()
    message = error_of(tool(*RUN, *given[0], "layer=pool", f"features=features/{small.name}"))
    assert "has features of another storage (min side 32" in message


def test_features_of_another_network(folder: Path, tool: Tool) -> None:
    assert tool(*RUN, *CALTECH, "layer=pool", "features=f").returncode == 0
    message = error_of(tool(*RUN, *CALTECH, "layer=pool", "features=f", "untrained=true", "seed=1"))
    assert message.startswith("error: f has features of another network (")


def test_help(tool: Tool) -> None:
    text = tool("spp_cls.transfer", "--help").stdout
    for word in ("trainer.devices", "maps:conv4", "choose_side", "Example: python -m spp_cls.transfer ckpt="):
        assert word in text


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(folder: Path, server: Server) -> None:
    layers = ("layer=[maps:conv4,level:6,pool,hidden1,hidden2]", "view=[crop,full,warp]", "side=[64,80]")
    for processes in (1, 2, 3):
        files = (f"features=f{processes}", f"out=t{processes}.csv")
        keys = (*CALTECH, *layers, *files, f"trainer.devices={processes}", "trainer.accelerator=cpu")
        result = server.run(folder, "-m", *RUN, *keys, processes=processes)
        assert result.returncode == 0, result.stderr
    paths = sorted((folder / "f1").iterdir())
    assert len(paths) == 2 * (5 * 3 - 1) * 2 + 1
    for path in paths:
        for other in ("f2", "f3"):
            assert (folder / other / path.name).read_bytes() == path.read_bytes(), path.name
    one, two, three = ([row["by_draw"] for row in read(folder / f"t{n}.csv")] for n in (1, 2, 3))
    assert one == two == three
