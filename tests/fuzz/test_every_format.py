"""Damaged files of every kind that is opened: each is refused in one line, or opened and right; no code of it is run.

SPP_CLS_FUZZ_CASES=20000 opens more of each kind, SPP_CLS_FUZZ_SEED=1 others: pytest -m slow tests/fuzz -s
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from spp_cls.export import trials
from tests.conftest import FEW_SIZES
from tests.fuzz.formats import FORMATS, write_whole_files
from tests.fuzz.runner import fuzz

SEED = int(os.environ.get("SPP_CLS_FUZZ_SEED", "0"))

# Of each kind.
FEW = 30
MANY = int(os.environ.get("SPP_CLS_FUZZ_CASES", "300"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        # Fewer and smaller images to try the exports on.
        patch.setattr(trials, "SIZES", FEW_SIZES)
        write_whole_files(folder)
    return folder


def check(whole: Path, kinds: list[str], count: int) -> None:
    outcomes, failures = fuzz(whole, kinds, SEED, count)
    for kind, found in outcomes.items():
        print(f"{kind}: {dict(found)}")
    total: Counter[str] = sum(outcomes.values(), Counter())
    print(f"{total.total()} damaged files: {dict(total)}")
    assert not failures, "\n".join(failures[:20])
    assert total.total() == count * len(kinds)
    # Else nothing was damaged, or nothing was opened.
    assert total["refused"] > 0
    assert total["accepted and right"] > 0


def test_some_damaged_files_of_every_kind(whole: Path) -> None:
    check(whole, list(FORMATS), FEW)


@pytest.mark.slow
def test_many_damaged_files_of_every_kind(whole: Path) -> None:
    check(whole, list(FORMATS), MANY)
