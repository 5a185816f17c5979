"""Strict configuration, and the experiment files."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from spp_cls.command import check_configuration, plain
from spp_cls.data.sizes import possible_sizes
from spp_cls.errors import UserError, error_line
from spp_cls.models.specs import SPECS
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


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", list(overrides)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_bring_no_keys_of_their_own(name: str) -> None:
    check_configuration(CONF, "train", [f"experiment={name}", "data.root=/data"])


@pytest.mark.parametrize("net", TABLE_2)
@pytest.mark.parametrize("kind", KINDS)
def test_an_experiment_for_each_cell_of_table_2(net: str, kind: str) -> None:
    name = f"{net}_{kind}"
    cfg = composed(f"experiment=table2/{name}", "data.root=/data", "trainer.devices=8")
    assert cfg["name"] == name
    assert (cfg["model"]["pooling"], cfg["sizes"]) == KINDS[kind]
    assert (cfg["model"]["name"], cfg["model"]["levels"], cfg["model"]["input_size"]) == (net, [6, 3, 2, 1], 224)
    assert cfg["data"]["kind"] == "imagenet"
    assert cfg["optimizer"]["schedule"] == "plateau"
    assert cfg["trainer"]["max_epochs"] == (70 if net == "zf5" else 90)
    comment = (CONF / f"experiment/table2/{name}.yaml").read_text()
    errors = re.search(r"top-1 (\S+) %, top-5 (\S+) %", comment)
    assert errors
    assert " ".join(errors.groups()) == TABLE_2[net][list(KINDS).index(kind)]
    assert f"experiment=table2/{name} " in comment


def test_there_is_a_model_file_for_each_network() -> None:
    for name in SPECS:
        assert composed(f"model={name}")["model"]["name"] == name


def test_the_demo_alternates_between_two_sizes_in_the_papers_ratio() -> None:
    cfg = composed()
    assert possible_sizes(cfg["sizes"], cfg["model"]["input_size"]) == [112, 90]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.rooot=x"], r"no key data\.rooot"),
        (["+data.rooot=x"], r"no key data\.rooot; did you mean data\.root\?"),
        (["model=zf6"], "Could not find 'model/zf6' Available options in 'model': convnet5"),
        (["data=imagenet"], r"data\.root is not set; give it as data\.root=VALUE"),
        (["optimizer.learning_rate=fast"], "a number such as 0.01, not 'fast'"),
        (["trainer.max_epochs=true"], "a number such as"),
        (["name=["], "no viable alternative"),
        (["name=${nothing}"], "'nothing' not found"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_configuration(CONF, "train", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [("8", 8), ("auto", "auto"), ("[0,2]", [0, 2])])
def test_devices_are_a_number_auto_or_a_list(value: str, expected: object) -> None:
    for name, more in (("train", []), ("eval", ["ckpt=best.ckpt", "data.root=/data"])):
        cfg = check_configuration(CONF, name, [f"trainer.devices={value}", *more])
        assert cfg.trainer.devices == expected


def test_an_unknown_key_in_an_experiment_file(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\noptimizer: {momentun: 0.5}\n")
    with pytest.raises(UserError, match=r"no key optimizer\.momentun; did you mean optimizer\.momentum\?"):
        check_configuration(tmp_path / "conf", "train", ["experiment=mine"])


def test_the_traceback_of_a_worker_is_left_out() -> None:
    error = UserError(
        "Caught UndecodableImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\nspp_cls.data.decode.UndecodableImageError: cannot decode the image a.b: no: x\n'
    )
    assert error_line(error) == "cannot decode the image a.b: no: x"
