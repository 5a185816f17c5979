"""Runs train.py and eval.py: typed, strict configuration from conf/ and the command line, errors on one line."""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from spp_cls.cli.errors import UserError, end_in_one_line, end_when_interrupted, shows_tracebacks, suggest, tracebacks
from spp_cls.cli.keys import OPEN_GROUPS, SCHEMAS, register_schemas
from spp_cls.cli.schema import check_fields, describe_field, walk_fields
from spp_cls.cli.sweep import RunFolders, check_sweep, list_runs, record_run, set_run_folders

register_schemas()


def run(
    task: Callable[[Any, DictConfig], Any],
    config_dir: Path,
    config_name: str,
    check: Callable[[Any], object] = lambda keys: None,
) -> None:
    """Compose conf/ and the overrides of the command line, check them, and hand them to `task`.

    `task` gets the keys as an object of the schema of `config_name`, and the configuration that they came from.
    `check` finds what types and ranges do not; with --multirun it is called for every run before the first starts, as
    `task` would find it only when its turn comes.
    With --multirun `task` is called once a run, each with its own run folder, and what it returns is collected.

    Every error ends in one line on stderr and exit status 1, or 2 if it is unexpected; with debug=true an unexpected
    error is shown with its traceback.
    """
    arguments = sys.argv[1:] = open_groups(sys.argv[1:])
    shown = shows_tracebacks() or "debug=true" in arguments

    def run_task(cfg: DictConfig) -> Any:
        # Here, as a launcher may call this in another process.
        _silence_lightning()

        def read_and_run() -> Any:
            return task(read_keys(cfg), cfg)

        hydra_cfg = HydraConfig.get()
        folder = cfg.get("run_folder")
        with tracebacks(shown or cfg.debug):
            if hydra_cfg.mode == RunMode.MULTIRUN and "results" in hydra_cfg.callbacks:
                return record_run(read_and_run, folder)
            return end_in_one_line(read_and_run, Path(folder) if folder else None)

    def check_and_run() -> None:
        if "--multirun" in arguments or "-m" in arguments:
            if not hasattr(SCHEMAS[config_name], "run_folder"):
                raise UserError(
                    f"--multirun is for train.py; {config_name}.py takes lists, such as 'ckpt=[a.ckpt,b.ckpt]' and "
                    "'protocol=[crop1,full1]'"
                )
            runs = _check_runs(config_dir, config_name, arguments, check)
            sys.argv[1:] = set_run_folders(config_dir, arguments, runs)
        elif not any(argument.startswith("-") for argument in arguments):
            # Hydra goes on with what it finds wrong only later.
            compose_checked(config_dir, config_name, arguments)
        try:
            # Hydra hands its own errors on instead of printing them on several lines.
            with tracebacks(True):
                hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(run_task)()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(_describe_error(error, SCHEMAS[config_name])) from error

    with end_when_interrupted(), tracebacks(shown):
        end_in_one_line(check_and_run)


def open_groups(arguments: Sequence[str]) -> list[str]:
    """Let keys of `_target_` nodes be set without Hydra's + although conf/ does not list them."""
    return [f"++{each}" if each.startswith(tuple(f"{group}." for group in OPEN_GROUPS)) else each for each in arguments]


def compose_checked(config_dir: Path, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration, Hydra's own part included, and check it.

    Raises:
        UserError: if a key is not in conf/, not set, or has a value of another type or range.
    """
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            cfg = compose(config_name, open_groups(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(_describe_error(error, SCHEMAS[config_name])) from error
    except (ValueError, TypeError, AssertionError) as error:
        # Of Hydra for a group that is set to no name, of OmegaConf for a key inside a list.
        raise UserError(f"{' '.join(overrides)} cannot be set: {_join_lines(str(error))}") from error
    read_keys(cfg)
    return cfg


def read_keys(cfg: DictConfig) -> Any:
    """Return a configuration as an object of its schema, interpolations resolved.

    Raises:
        UserError: if a key is not set, or has a value of another type or range.
    """
    schema = OmegaConf.get_type(cfg)
    own = deepcopy(cfg)
    with open_dict(own):
        own.pop("hydra", None)
    try:
        # Hydra's +key=value brings keys that the schema does not have.
        _refuse_unknown(OmegaConf.to_container(own), schema)
        keys = OmegaConf.to_object(own)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is not set; give it as {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        raise UserError(_describe_error(error, schema)) from error
    check_fields(keys)
    return keys


def _refuse_unknown(values: Any, schema: Any, prefix: str = "") -> None:
    hints = get_type_hints(schema)
    for name, value in values.items():
        if name not in hints:
            raise UserError(_describe_unknown(f"{prefix}{name}", schema, prefix))
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name} is a group of keys, such as {prefix}{name}.KEY=VALUE, not {value!r}")
            _refuse_unknown(value, hints[name], f"{prefix}{name}.")


@contextmanager
def convert_lightning_errors(group: str) -> Iterator[None]:
    """Turn what Lightning finds wrong with a group of the configuration into a UserError.

    Raises:
        UserError: if the settings are not possible, here or at all.
    """
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise UserError(f"{group}: {_join_lines(str(error))}") from error


def _check_runs(
    config_dir: Path, config_name: str, arguments: Sequence[str], check: Callable[[Any], object]
) -> list[RunFolders]:
    """Check the configuration of each run of --multirun before the first starts; return their run folders."""
    try:
        runs = list_runs(arguments)
    except HydraException as error:
        raise UserError(_describe_error(error, SCHEMAS[config_name])) from error
    folders = []
    for overrides in runs:
        cfg = compose_checked(config_dir, config_name, overrides)
        check_sweep(cfg, cfg.hydra.launcher._target_)
        check(read_keys(cfg))
        with open_dict(cfg):
            written = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(written, dict)
        folders.append(RunFolders(str(written.get("run_folder")), str(cfg.get("run_folder"))))
    return folders


def _describe_error(error: Exception, schema: Any) -> str:
    """Say in one line what Hydra or OmegaConf found wrong, and in which file if it is not the command line."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(cause)
    found = re.search(r"full_key: (\S+)", text)
    # OmegaConf says what is wrong first, then where; Hydra puts the file before it and its search path behind.
    reason = _join_lines(re.split(r"\s+full_key:|Config search path|To append to your config use", text)[0])
    file = re.match(r"In '(.+?)': .* raised while composing config: ", reason)
    where = f" (in {file[1]}.yaml)" if file else ""
    reason = reason[file.end() :] if file else reason
    if not found:
        return reason + where
    key = found[1]
    for name, each, hint in walk_fields(schema):
        if name == key:
            return f"{key} is {describe_field(each, hint)}: {reason}{where}"
    if re.match(r"Key .* (not in|is not in)", reason):
        return _describe_unknown(key, schema) + where
    return f"{key}: {reason}{where}"


def _describe_unknown(key: str, schema: Any, prefix: str = "") -> str:
    return f"there is no key {key}; {suggest(key, [name for name, _, _ in walk_fields(schema, prefix)])}"


def _join_lines(text: str) -> str:
    return " ".join(text.split())


def _silence_lightning() -> None:
    """Hide Lightning's messages about itself, and the warnings that do not apply here."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning's own call
        r"Checkpoint directory .* exists and is not empty",  # a run is resumed in its folder
        r"The '\w+' does not have many workers",  # their number is the user's choice
        r"It is recommended to use .*sync_dist=True",  # the metrics are summed over processes already
        r"This DataLoader will create \d+ worker processes",  # likewise
        r"Found \d+ module\(s\) in eval mode",  # parts that freeze= names
        r"The number of training batches \(\d+\) is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message)
