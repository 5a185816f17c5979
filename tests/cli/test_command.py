"""Strict configuration, and the experiment files."""

import inspect
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from spp_cls.cli.command import compose_checked, read_keys
from spp_cls.cli.errors import UserError, format_error
from spp_cls.cli.keys import TrainKeys
from spp_cls.cli.sweep import RunFolders, set_run_folders
from spp_cls.cli.targets import call_target
from spp_cls.data import ImageNetDataModule
from spp_cls.data.transforms.sizes import list_sizes
from spp_cls.models.config import create_config
from spp_cls.models.net import NetConfig
from spp_cls.models.specs import SPECS
from spp_cls.training.losses import CrossEntropy
from spp_cls.training.optimization import PAPER_SGD, create_factory
from spp_cls.training.schedules import Plateau
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
EXPERIMENTS = sorted(str(path.relative_to(CONF / "experiment"))[:-5] for path in CONF.glob("experiment/**/*.yaml"))

# Table 2 of the paper: top-1 and top-5 error of (a) no SPP, (b) single-size and (c) multi-size training.
TABLE_2 = {
    "zf5": ("35.99 14.76", "34.98 14.14", "34.60 13.64"),
    "convnet5": ("34.93 13.92", "34.38 13.54", "33.94 13.33"),
    "overfeat5": ("34.13 13.52", "32.87 12.80", "32.26 12.33"),
    "overfeat7": ("32.01 11.97", "30.36 11.12", "29.68 10.95"),
}
KINDS = {"nospp": ("none", "single"), "spp_singlesize": ("spp", "single"), "spp_multisize": ("spp", "alternate")}


def keys_of(*overrides: str) -> TrainKeys:
    return read_keys(compose_checked(CONF, "train", list(overrides)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_keys_that_exist(name: str) -> None:
    keys_of(f"experiment={name}", "data.root=/data")


@pytest.mark.parametrize("net", TABLE_2)
@pytest.mark.parametrize("kind", KINDS)
def test_an_experiment_for_each_cell_of_table_2(net: str, kind: str) -> None:
    name = f"{net}_{kind}"
    keys = keys_of(f"experiment=table2/{name}", "data.root=/data", "trainer.devices=8")
    assert keys.name == name
    assert (keys.model.pooling, keys.sizes) == KINDS[kind]
    assert (keys.model.name, keys.model.levels, keys.model.input_size) == (net, [6, 3, 2, 1], 224)
    assert (keys.model.width, keys.model.std, keys.model.init) == (1, [1, 1, 1], "paper")
    assert (keys.data.kind, keys.data.batch_size) == ("imagenet", 128)
    assert keys.schedule["_target_"].endswith(".Plateau")
    assert keys.trainer.max_epochs == (70 if net == "zf5" else 90)
    assert keys.trainer.gradient_clip_val is None
    comment = (CONF / f"experiment/table2/{name}.yaml").read_text()
    errors = re.search(r"top-1 (\S+) %, top-5 (\S+) %", comment)
    assert errors
    assert " ".join(errors.groups()) == TABLE_2[net][list(KINDS).index(kind)]
    assert f"experiment=table2/{name} " in comment


@pytest.mark.parametrize("net", TABLE_2)
@pytest.mark.parametrize("kind", KINDS)
def test_an_experiment_for_each_cell_in_miniature(net: str, kind: str) -> None:
    name = f"{net}_{kind}"
    keys = keys_of(f"experiment=mini/{name}", "data.root=/data", "seed=2")
    assert keys.run_folder == f"runs/mini/{name}-2"
    assert (keys.model.name, keys.model.width, keys.model.input_size) == (net, 0.25, 112)
    assert (keys.model.pooling, keys.sizes) == KINDS[kind]
    # The rest is the same in all cells.
    common = keys_of("experiment=mini", "data.root=/data", "seed=2", f"name={name}-2")
    for each in (keys, common):
        each.model.name = each.model.pooling = each.sizes = ""
    assert keys == common


def test_there_is_a_model_file_for_each_network() -> None:
    for name in SPECS:
        assert keys_of(f"model={name}").model.name == name


def test_the_demo_alternates_between_two_sizes_in_the_papers_ratio() -> None:
    keys = keys_of()
    assert list_sizes(keys.sizes, keys.model.input_size) == [112, 90]


def test_hyper_parameters_do_not_depend_on_the_data_set() -> None:
    demo, packed = keys_of(), keys_of("data=packed", "data.root=data/demo", "name=same")
    assert (packed.data.kind, packed.name) == ("packed", "same")
    packed.data.kind, packed.name, packed.run_folder, packed.logger = "demo", demo.name, demo.run_folder, demo.logger
    assert packed == demo


def test_defaults_of_conf_are_those_of_python() -> None:
    keys = keys_of("experiment=paper", "data.root=/data")
    model = asdict(keys.model)
    assert model.pop("pretrained") is False
    assert create_config(**model) == NetConfig(name="zf5")
    parameters = inspect.signature(ImageNetDataModule).parameters
    for key, value in vars(keys.data).items():
        assert key in ("kind", "root") or value == parameters[key].default, key
    assert call_target(keys.augmentation, "augmentation") == parameters["augmentation"].default
    assert call_target(keys.schedule, "schedule") == Plateau()
    assert call_target(keys.loss, "loss") == CrossEntropy()
    optimizer: Any = create_factory(keys.optimizer)
    assert (optimizer.func, optimizer.keywords) == (PAPER_SGD.func, PAPER_SGD.keywords)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.rooot=x"], r"no key data\.rooot; did you mean data\.root\?"),
        (["+data.rooot=x"], r"no key data\.rooot; did you mean data\.root\?"),
        (["+everything=x"], r"no key everything; there are "),
        (["model=zf6"], "Could not find 'model/zf6' Available options in 'model': convnet5"),
        (["data=imagenet"], r"data\.root is not set; give it as data\.root=VALUE"),
        (["trainer.max_epochs=true"], "trainer.max_epochs is a whole number from 1: Value 'True'"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs is a whole number from 1: Value '1.5'"),
        (["trainer.max_epochs=0"], "trainer.max_epochs is a whole number from 1, not 0"),
        (["seed=-1"], "seed is a whole number from 0 to 4294967295, not -1"),
        (["seed=1e20"], "seed is a whole number from 0 to 4294967295"),
        (["data.num_workers=many"], "data.num_workers is a whole number from 0 to 1024 or auto, not 'many'"),
        (["data.num_workers=100000"], "data.num_workers is a whole number from 0 to 1024 or auto, not 100000"),
        (["compile=maybe"], "compile is true or false or auto, not 'maybe'"),
        (["ema_decay=2"], "ema_decay is a number above 0 below 1 or null, not 2.0"),
        (["model.levels=null"], "model.levels is a list of whole numbers: field 'model.levels' is not Optional"),
        (["model.levels=[3,x]"], "model.levels.1.: Value 'x'"),
        (["model.mean=7"], "model.mean is a list of numbers"),
        (["checkpoint.every_steps=abc"], "checkpoint.every_steps is a whole number from 1 or null"),
        (["name=["], "no viable alternative"),
        (["name=${nothing}"], "'nothing' not found"),
        (["experiment=null"], "must be a string"),
    ],
)
def test_errors_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose_checked(CONF, "train", overrides)
    assert "\n" not in str(caught.value)


def test_keys_of_the_open_groups_need_no_plus() -> None:
    keys = keys_of("optimizer=custom", "optimizer._target_=a.B", "optimizer.beta=3", "optimizer.nested={c: [1, 2]}")
    assert keys.optimizer == {"_target_": "a.B", "backbone_lr_scale": 1.0, "beta": 3, "nested": {"c": [1, 2]}}
    assert set(keys_of("logger=[tensorboard,csv]").logger) == {"tensorboard", "csv"}
    assert keys_of("logger=[]").logger == {}


@pytest.mark.parametrize(("value", "expected"), [("8", 8), ("auto", "auto"), ("[0,2]", [0, 2])])
def test_devices_are_a_number_auto_or_a_list(value: str, expected: object) -> None:
    for name, more in (("train", []), ("eval", ["ckpt=best.ckpt", "data.root=/data"])):
        keys = read_keys(compose_checked(CONF, name, [f"trainer.devices={value}", *more]))
        assert keys.trainer.devices == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: {name: zf5}", "there is no key modle"),
        ("model: {widht: 0.5}", r"no key model\.widht; did you mean model\.width\?"),
        ("model: {width: wide}", "model.width is a number: Value 'wide'"),
        ("trainer: 3", r"int is not a subclass of TrainerKeys. value: 3 \(in experiment/mine.yaml\)"),
        ("model: [", "expected the node content"),
    ],
)
def test_errors_in_an_experiment_file_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(UserError, match=message) as caught:
        compose_checked(tmp_path / "conf", "train", ["experiment=mine"])
    assert "\n" not in str(caught.value)


def test_the_traceback_of_a_worker_is_left_out() -> None:
    error = UserError(
        "Caught UndecodableImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\nspp_cls.data.decode.UndecodableImageError: cannot decode the image a.b: no: x\n'
    )
    assert format_error(error) == "cannot decode the image a.b: no: x"


@pytest.mark.parametrize(
    ("arguments", "folders", "added"),
    [
        (["seed=0,1"], [("runs/${name}", "runs/a")] * 2, ["run_folder='runs/${name}/seed=${seed}'"]),
        (["seed=0,1", "run_folder=b"], [("b", "b")] * 2, ["run_folder='b/seed=${seed}'"]),
        (["seed=0,1"], [("runs/${name}", "runs/a-0"), ("runs/${name}", "runs/a-1")], None),
        # An experiment's own.
        (
            ["optimizer.lr=1,2"],
            [("r/mini/${name}", "r/mini/a")] * 2,
            ["run_folder='r/mini/${name}/optimizer.lr=${optimizer.lr}'"],
        ),
        # Experiments with folders of their own, which are not those of both.
        (
            ["experiment=a,b", "seed=0,1"],
            [("r/a/x", "r/a/x"), ("r/b/x", "r/b/x")] * 2,
            ["run_folder='runs/${name}/experiment=${hydra:runtime.choices.experiment}/seed=${seed}'"],
        ),
        # The values are the sweeper's to find.
        (
            ["model=glob(*)"],
            [("runs/${name}", "runs/a")],
            ["run_folder='runs/${name}/model=${hydra:runtime.choices.model}'"],
        ),
        (["seed=0"], [("runs/${name}", "runs/a")], None),
    ],
)
def test_each_run_of_several_has_a_folder_of_its_own(
    arguments: list[str], folders: list[tuple[str, str]], added: list[str] | None
) -> None:
    runs = [RunFolders(*each) for each in folders]
    kept = arguments if added is None else [each for each in arguments if not each.startswith("run_folder")] + added
    assert set_run_folders(CONF, ["--multirun", *arguments], runs) == ["--multirun", *kept]


@pytest.mark.parametrize(
    ("has_mps", "expected"), [(True, ["cpu", "cuda", "cuda", "cpu"]), (False, ["auto", "gpu", "cuda", "cpu"])]
)
def test_apples_gpu_is_never_chosen(has_mps: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    found = [
        read_keys(compose_checked(CONF, "eval", ["ckpt=a", f"trainer.accelerator={name}"])).trainer.accelerator
        for name in ("auto", "gpu", "cuda", "cpu")
    ]
    assert found == expected
