"""The way into every Hydra command: strict configuration, and errors on one line."""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spp_cls.errors import UserError, one_line
from spp_cls.sweep import check_sweep, each_run, own_folders, row_of


def run(task: Callable[[DictConfig], Any], config_dir: Path, config_name: str) -> None:
    """Compose conf/ and the overrides on the command line, check them, and hand them to `task`.

    With --multirun `task` is called for each of several settings, each with a run folder of its own, and what it
    returns is collected; a failure of one is told with the others.

    A UserError, a disk that is full or not writable, and every mistake in the configuration end in one line on
    stderr and exit status 1.
    """

    def checked(cfg: DictConfig) -> Any:
        # Here, as a launcher may call this in another process.
        _quiet()
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.mode == RunMode.MULTIRUN and "results" in hydra_cfg.callbacks:
            return row_of(lambda: task(cfg), cfg.run_folder)
        return one_line(lambda: task(cfg))

    arguments = sys.argv[1:]
    if "--multirun" in arguments or "-m" in arguments:
        one_line(lambda: _check_runs(config_dir, config_name, arguments))
        sys.argv[1:] = own_folders(config_dir, arguments)
    elif not any(argument.startswith("-") for argument in arguments):
        # Hydra reports mistakes on several lines and lets an experiment file invent keys.
        one_line(lambda: check_configuration(config_dir, config_name, arguments))
    hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(checked)()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Turn a configuration into plain dicts, lists and values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


@contextmanager
def settings_of(group: str) -> Iterator[None]:
    """Tell what Lightning finds wrong with a group of the configuration as a mistake of the user.

    Raises:
        UserError: the settings are not possible, here or at all.
    """
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(f"{group}: {_joined(str(error))}") from error


def check_configuration(config_dir: Path, config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a configuration, Hydra's own part included, and check it.

    Experiment files and `+key=value` may override keys, but not bring new ones.

    Raises:
        UserError: a key that conf/ does not have, a value that is missing, or none of the default's kind.
    """
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            cfg = compose(config_name, overrides, return_hydra_config=True)
            choices = plain(cfg.hydra.runtime.choices)
            groups = [
                f"{group}={choice}"
                for group, choice in choices.items()
                if group != "experiment" and not group.startswith("hydra/")
            ]
            known = _leaves(OmegaConf.to_container(compose(config_name, groups)))
        settings = deepcopy(cfg)
        del settings.hydra
        given = _leaves(OmegaConf.to_container(settings))
        for key, value in given.items():
            if key not in known:
                close = get_close_matches(key, known, n=1)
                raise UserError(f"there is no key {key}" + (f"; did you mean {close[0]}?" if close else ""))
            _check_value(key, value, known[key])
        OmegaConf.to_container(settings, resolve=True)
        return cfg
    except HydraException as error:
        raise UserError(_hydra_message(error)) from error
    except OmegaConfBaseException as error:
        raise UserError(_joined(str(error).split("full_key")[0])) from error


def _check_runs(config_dir: Path, config_name: str, arguments: list[str]) -> None:
    """Check the configuration of each run of --multirun before the first starts."""
    try:
        runs = each_run(arguments)
    except HydraException as error:
        raise UserError(_hydra_message(error)) from error
    for overrides in runs:
        cfg = check_configuration(config_dir, config_name, overrides)
        check_sweep(cfg, cfg.hydra.launcher._target_)


def _check_value(key: str, value: Any, default: Any) -> None:
    if value == "???":
        raise UserError(f"{key} is not set; give it as {key}=VALUE")
    if key == "trainer.devices":
        # A number, a list of device numbers or auto: Lightning knows which there are.
        return
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and (isinstance(value, bool) or not isinstance(value, int | float)) and "${" not in str(value):
        raise UserError(f"{key} is a number such as {default}, not {value!r}")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key} is true or false, not {value!r}")


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys to dotted ones; a list is one value."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_leaves(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _hydra_message(error: HydraException) -> str:
    # "Could not override 'data.rooot'.\nTo append to your config use +data.rooot=1": new keys are refused here.
    message = _joined(re.split(r"To append to your config use|Config search path", str(error))[0])
    match = re.match(r"Could not override '(.+?)'\.", message)
    return f"there is no key {match[1]} in the configuration; see conf/ for those there are" if match else message


def _joined(text: str) -> str:
    return " ".join(text.split())


def _quiet() -> None:
    """Leave out what Lightning says of itself; its warnings stay, but for those that are none here."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own call
        r"Checkpoint directory .* exists and is not empty",  # a run is resumed in its folder
        r"The '\w+' does not have many workers",  # their number is the user's choice
        r"It is recommended to use .*sync_dist=True",  # the figures are summed over processes already
        r"This DataLoader will create \d+ worker processes",  # likewise
        r"The number of training batches \(\d+\) is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message)
