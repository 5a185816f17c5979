"""The verdicts on the paper's claims, on invented rows."""

import importlib
from types import ModuleType

import pytest
from scipy.stats import ttest_1samp

from spp_cls.evaluation.seeds import compute_spread, group_by_seed
from tests.conftest import REPOSITORY

COMMON = {
    "data": "x", "data_digest": "d", "networks": "1", "net": "zf5", "width": "0.25", "levels": "6 3 2 1",
    "input_size": "112", "epochs": "20", "precision": "32-true",
}  # fmt: skip


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("claims")


def rows(pooling: str, sizes: str, protocol: str, errors: list[float], **values: str) -> list[dict[str, str]]:
    given = {**COMMON, "pooling": pooling, "sizes": sizes, "protocol": protocol, **values}
    return [{**given, "seed": str(seed), "top1_error": str(error)} for seed, error in enumerate(errors)]


def test_the_interval_is_that_of_the_paired_t_test(claims: ModuleType) -> None:
    differences = [-1.2, -0.4, -0.9, 0.3]
    interval = claims.compute_interval(differences)
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.mean == pytest.approx(-0.55)


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([29.0, 30.1, 31.0], "confirmed"),  # about one point lower each time
        ([31.0, 32.1, 33.0], "refuted"),
        ([29.0, 33.0, 31.0], "not resolved"),
        ([29.0], "not resolved"),
    ],
)
def test_verdicts(better: list[float], verdict: str, claims: ModuleType) -> None:
    found = rows("none", "single", "crop10", [30.0, 31.0, 32.0]) + rows("spp", "single", "crop10", better)
    _, header, (line,) = claims.build_claims_table(found, "title")
    cells = dict(zip(header, line, strict=True))
    assert cells["claim"].startswith("Multi-level pooling helps")
    assert (cells["verdict"], cells["pairs"]) == (verdict, len(better))


@pytest.mark.parametrize(
    ("on_maps", "verdict"),
    [([30.1, 31.0, 31.9], "confirmed"), ([33.0, 34.1, 35.0], "refuted"), ([31.0, 30.0, 32.0], "not resolved")],
)
def test_equality_is_a_small_interval_around_zero(on_maps: list[float], verdict: str, claims: ModuleType) -> None:
    found = rows("spp", "single", "crop10", [30.0, 31.0, 32.0]) + rows("spp", "single", "map10", on_maps)
    _, _, (line,) = claims.build_claims_table(found, "title")
    assert line[-1] == verdict


def test_runs_are_paired_by_seed_network_and_training(claims: ModuleType) -> None:
    found = (
        rows("spp", "single", "crop1", [40.0, 41.0])
        + rows("spp", "single", "full1", [39.0])
        + rows("spp", "alternate", "full1", [10.0, 10.0])  # has no crop1
        + rows("spp", "single", "crop1", [50.0], net="overfeat7")
        + rows("spp", "single", "full1", [47.0, 20.0], net="overfeat7")
    )
    (claim,) = [each for each in claims.CLAIMS if each.words.startswith("The whole image")]
    assert claims.find_differences(claim, found) == {"zf5": [-1.0], "overfeat7": [-3.0]}


def test_cells_stand_beside_the_papers(claims: ModuleType) -> None:
    paper = [
        {"table": "2", "row": "ZF-5 (a)", "net": "zf5", "pooling": "none", "sizes": "single", "top1_error": "35.99"},
        {"table": "2", "row": "ZF-5 (b)", "net": "zf5", "pooling": "spp", "sizes": "single", "top1_error": "34.98"},
    ]
    found = rows("none", "single", "crop10", [30.0, 32.0]) + rows("spp", "single", "crop10", [29.0, 31.0])
    _, _, (first, second) = claims.build_cells_table(found, paper, "title")
    assert first == ["ZF-5 (a)", "31.00 ± 1.41", 2, "", "", "35.99", ""]
    assert second == ["ZF-5 (b)", "30.00 ± 1.41", 2, "-1.00 [-1.00, -1.00]", "confirmed", "34.98", "-1.01"]


def test_protocols_side_by_side(claims: ModuleType) -> None:
    found = rows("spp", "single", "crop1", [40.0, 42.0]) + rows("spp", "single", "full1", [39.0])
    _, header, lines = claims.build_protocols_table(found, "title")
    assert header[-2:] == ("crop1", "full1")
    # The number of seeds differs, so these are two lines.
    assert [line[-3:] for line in lines] == [["2", "41.00 ± 1.41", ""], ["1", "", "39.00"]]


def test_the_last_row_of_a_seed_counts() -> None:
    found = rows("spp", "single", "crop1", [40.0]) + rows("spp", "single", "crop1", [38.0])
    (members,) = group_by_seed(found).values()
    assert members["0"]["top1_error"] == "38.0"


def test_spread() -> None:
    assert str(compute_spread([1.0, 2.0, 4.0])) == "2.33 ± 1.53"
    assert str(compute_spread([3.0])) == "3.00"
