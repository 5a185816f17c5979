"""Whatever value a key is given, it is refused in one line or taken: no traceback, no hang, no file.

More cases: SPP_CLS_CASES=10000 pytest -m slow tests/cli/test_properties.py
"""

import os
import resource
import runpy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spp_cls.cli.command import compose_checked, convert_lightning_errors, read_keys
from spp_cls.cli.errors import FailedError, UserError, catch_errors
from spp_cls.evaluation.report import choose_protocols, find_checkpoints
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
CASES = int(os.environ.get("SPP_CLS_CASES", "300"))

# A case may take this long, and have so much memory beyond what the process has.
_SECONDS, _BYTES = 60, 4 * 2**30

# As typed on the command line.
VALUES = (
    "null", "", "''", "true", "0", "-1", "1", "3", "-0.5", "1.5", "0.01", "1e20", "-1e20", "1e400", "nan", ".inf",
    "123456789012345678901234567890", "abc", "auto", "..", "../x", "/nowhere/x", "'a b'", "'ünïcødé'", "'\x07'",
    "'a\udcffb'", "a" * 300, "[]", "[1]", "[-1]", "[0.5,x]", "[null]", "[[1],[2]]", "[1e9]", "{}", "{a: 1}",
    "{_target_: os.getcwd}", "${seed}", "${nothing}", "${oc.env:NOTHING}", "[", "'",
)  # fmt: skip

FREE_VALUES = st.one_of(
    st.sampled_from(VALUES),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20).map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'"),
    st.lists(st.one_of(st.integers(), st.floats()), max_size=4).map(str),
)

Check = Callable[[Any], object]


def list_keys(cfg: DictConfig) -> list[str]:
    def walk(tree: Any, prefix: str) -> Iterator[str]:
        for name, value in tree.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    return list(walk({k: v for k, v in OmegaConf.to_container(cfg).items() if k != "hydra"}, ""))  # type: ignore[union-attr]


def build_eval(keys: Any) -> None:
    choose_protocols(keys.protocol, keys.scales, keys.positions, keys.flips)
    find_checkpoints(keys.ckpt)


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    build = runpy.run_path(str(REPOSITORY / "train.py"))["build"]

    def build_train(keys: Any) -> None:
        build(keys)
        with convert_lightning_errors("trainer"):
            pl.Trainer(**asdict(keys.trainer) | {"accelerator": "cpu"}, logger=False, enable_checkpointing=False)

    return {"train": build_train, "eval": build_eval}


BASE = {"train": ["trainer.accelerator=cpu"], "eval": [f"ckpt={REPOSITORY}/eval.py", "trainer.accelerator=cpu"]}
CONFIGS = {name: compose_checked(CONF, name, overrides) for name, overrides in BASE.items()}
KEYS = {name: list_keys(cfg) for name, cfg in CONFIGS.items()}
# Not what Hydra does beside: other groups, and other folders of configurations.
GROUPS = {"train": ("model", "data", "optimizer", "schedule", "experiment"), "eval": ("data",)}


@contextmanager
def limits() -> Iterator[None]:
    """End a case that takes too long or too much memory by an error that is none of the user's."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"over {_SECONDS} seconds")

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


class Counts:
    """Cases: how many were refused and accepted, and those that ended otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused = self.accepted = 0
        self.wrong: list[str] = []

    def run(self, case: list[str], action: Callable[[], object]) -> None:
        refusal = None
        try:
            with limits():
                catch_errors(action)
        except FailedError as failure:
            refusal = failure
        if refusal is None:
            self.accepted += 1
        elif refusal.status == 1 and "\n" not in str(refusal):
            self.refused += 1
        else:
            self.wrong.append(f"{case}: {refusal}")
        assert not list(self.folder.iterdir()), case

    def record(self, request: pytest.FixtureRequest) -> None:
        text = f"{self.refused + self.accepted} cases, {self.refused} refused, {self.accepted} accepted"
        request.node.user_properties.append(("counts", text))
        assert not self.wrong, "\n".join(self.wrong)
        assert self.refused
        assert self.accepted


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Counts]:
    monkeypatch.chdir(tmp_path)
    counted = Counts(tmp_path)
    yield counted
    counted.record(request)


def apply(name: str, overrides: list[str], check: Check) -> None:
    """Apply overrides to a configuration that was composed once, which takes nine tenths of the time."""
    cfg = deepcopy(CONFIGS[name])
    try:
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(overrides), cfg)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
        # As compose_checked does.
        raise UserError(" ".join(str(error).split())) from error
    check(read_keys(cfg))


def compose(name: str, overrides: list[str], check: Check) -> None:
    check(read_keys(compose_checked(CONF, name, [*BASE[name], *overrides])))


@pytest.mark.parametrize("name", BASE)
def test_every_key_with_some_values(name: str, counts: Counts, checks: dict[str, Check]) -> None:
    for number, key in enumerate(KEYS[name]):
        for step in range(2):
            case = [f"{key}={VALUES[(2 * number + step) * 7 % len(VALUES)]}"]
            counts.run(case, lambda case=case: apply(name, case, checks[name]))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_every_key_with_every_value(name: str, counts: Counts, checks: dict[str, Check]) -> None:
    for key in KEYS[name]:
        neighbours = [f"+{key}x=1", f"{key}.x=1", f"++{key}.x=1", f"~{key}"]
        for case in [*(f"{key}={value}" for value in VALUES), *neighbours]:
            counts.run([case], lambda case=case: apply(name, [case], checks[name]))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_groups_with_every_value(name: str, counts: Counts, checks: dict[str, Check]) -> None:
    for group in GROUPS[name]:
        for value in ("custom", "none", "zf5_tiny", "packed", *VALUES):
            case = [f"{group}={value}"]
            counts.run(case, lambda case=case: compose(name, case, checks[name]))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE)
def test_pairs_of_keys_at_random(name: str, counts: Counts, checks: dict[str, Check]) -> None:
    pair = st.tuples(st.sampled_from(KEYS[name]), FREE_VALUES).map("=".join)

    @seed(0)
    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(pair, min_size=1, max_size=2))
    def check(case: list[str]) -> None:
        counts.run(case, lambda: compose(name, case, checks[name]))

    check()
