"""The verdicts on the paper's claims, on invented rows."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import ttest_1samp

from spp_cls.evaluation.seeds import compute_spread, group_by_seed
from tests.conftest import REPOSITORY

COMMON = {
    "data": "x", "data_digest": "d", "stored_side": "", "networks": "1", "net": "zf5", "width": "0.25",
    "levels": "6 3 2 1", "input_size": "112", "epochs": "20", "images": "3925", "precision": "32-true",
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
    assert (cells["verdict"], cells["pairs of runs"]) == (verdict, len(better))


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
    assert claims.find_differences(claim, found) == [("zf5", "0", -1.0), ("overfeat7", "0", -3.0)]


def test_trainings_of_one_seed_count_as_one(claims: ModuleType) -> None:
    found = [
        row
        for sizes, gains in (("single", [-1.0, -3.0]), ("alternate", [-2.0, -4.0]))
        for row in rows("spp", sizes, "crop1", [40.0, 40.0])
        + rows("spp", sizes, "full1", [40 + gain for gain in gains])
    ]
    _, _, (line,) = claims.build_claims_table(found, "title")
    # The means of the two seeds, -1.5 and -3.5: -2.5 +- 12.706 * sqrt(2) / sqrt(2).
    assert line[1:] == ["-2.50 [-15.21, +10.21]", 4, "zf5 -2.50", "not resolved"]


def test_runs_of_one_seed_resolve_nothing(claims: ModuleType) -> None:
    found = [
        row
        for sizes, error in (("single", 30.0), ("alternate", 30.1))
        for row in rows("avg", sizes, "full1", [error]) + rows("spp", sizes, "full1", [error - 5])
    ]
    _, _, (line,) = claims.build_claims_table(found, "title")
    assert line[1:] == ["-5.00", 2, "zf5 -5.00", "not resolved"]


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
    title, header, lines = claims.build_protocols_table(found, "title")
    # Of a share of 121 / 300: 100 * sqrt(0.4033 * 0.5967 / 3925) = 0.783.
    assert title == "title (3,925 images: standard error of one figure 0.8)"
    assert header[-2:] == ("crop1", "full1")
    # The number of seeds differs, so these are two lines.
    assert [line[-3:] for line in lines] == [["2", "41.00 ± 1.41", ""], ["1", "", "39.00"]]


def test_an_ensemble_beside_its_networks(claims: ModuleType) -> None:
    found = rows("spp", "single", "crop10", [30.0, 32.0, 37.0]) + rows("spp", "alternate", "crop10", [1.0, 1.0])
    (ensemble,) = rows("spp", "single", "crop10", [29.0], networks="2")
    ensemble["seed"] = "0 + 2"  # as eval.py joins them
    (alone,) = rows("spp", "single", "full1", [28.0], networks="2")
    alone["seed"] = "0 + 1"  # whose networks were not tested like this
    _, _, (line,) = claims.build_ensembles_table([*found, ensemble, alone], "title")
    assert line == ["zf5", "spp", "single", "crop10", "0 2", "29.00", "30.00 37.00", "4.50"]
    # An ensemble is no run of its own in the other tables.
    assert len(claims.build_protocols_table([*found, ensemble, alone], "title")[2]) == 2


def test_pooling_and_sizes_of_a_network_of_today(claims: ModuleType) -> None:
    found = (
        rows("avg", "single", "crop10", [20.0, 21.0])
        + rows("spp", "single", "crop10", [18.0, 20.0])
        + rows("spp", "progressive", "crop10", [19.0, 20.5])
        + rows("avg", "alternate", "crop10", [19.0])
    )
    _, _, lines = claims.build_claims_table(found, "title")
    differences = {line[0].split(":")[0].split(" (")[0]: line[1].split(" ")[0] for line in lines}
    assert differences == {
        "Multi-size training helps": "-1.00",
        "SPP in place of average pooling, ten crops": "-1.50",
        "Sizes that grow over the run against one size": "+0.75",
    }


def test_the_summary_has_a_column_for_each_data_set(claims: ModuleType) -> None:
    first = rows("none", "single", "crop10", [30.0, 31.0]) + rows("spp", "single", "crop10", [29.0, 29.9])
    second = rows("spp", "single", "crop1", [40.0, 40.0]) + rows("spp", "single", "full1", [39.0, 41.0])
    second += rows("spp", "single", "map96", [30.0]) + rows("spp", "single", "map10", [31.0])
    second += rows("avg", "single", "crop10", [20.0]) + rows("spp", "single", "crop10", [20.0])
    _, header, lines = claims.build_summary_table({"A": first, "B": second}, "title")
    assert header[1:] == ("A", "B")
    # The mean of two differences 0.1 apart: a half width of 12.71 x 0.05 by Student's t.
    assert [line[1:] for line in lines] == [
        ["-1.05 [-1.69, -0.41]: confirmed", ""],
        ["", "+0.00 [-12.71, +12.71]: not resolved"],
    ]


def test_hours_are_those_of_the_median_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    mini_tables = importlib.import_module("mini_tables")
    # The second run stood still in its second epoch.
    seconds = {"0": (1800, 1800), "1": (3600, 90000, 3600)}
    lines = [f"zf5,spp,single,{seed},{each}\n" for seed, epochs in seconds.items() for each in epochs]
    (tmp_path / "curves.csv").write_text("net,pooling,sizes,seed,seconds\n" + "".join(lines))
    ((_, _, cells),) = mini_tables._build_hours(tmp_path / "curves.csv")
    assert cells == [["zf5", 2, "4.0"], ["all", 2, "4.0"]]


def test_the_last_row_of_a_seed_counts() -> None:
    found = rows("spp", "single", "crop1", [40.0]) + rows("spp", "single", "crop1", [38.0])
    (members,) = group_by_seed(found).values()
    assert members["0"]["top1_error"] == "38.0"


def test_spread() -> None:
    assert str(compute_spread([1.0, 2.0, 4.0])) == "2.33 ± 1.53"
    assert str(compute_spread([3.0])) == "3.00"
