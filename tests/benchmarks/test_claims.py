"""The verdicts on the paper's claims, on invented rows."""

import importlib
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from spp_cls.evaluation.seeds import compute_spread, group_by_seed
from tests.conftest import REPOSITORY

COMMON = {
    "data": "x", "data_digest": "d", "stored_side": "", "networks": "1", "net": "zf5", "width": "0.25",
    "levels": "6 3 2 1", "parameters": "1000", "input_size": "112", "epochs": "20", "images": "3925",
    "precision": "32-true", "checkpoint": "a", "checkpoint_sha256": "b", "seconds": "360",
}  # fmt: skip


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("report.claims")


def rows(pooling: str, sizes: str, protocol: str, errors: list[float], **values: str) -> list[dict[str, str]]:
    given = {**COMMON, "pooling": pooling, "sizes": sizes, "protocol": protocol, **values}
    # Top-5 errors are a tenth of the top-1 errors.
    return [
        {**given, "seed": str(seed), "top1_error": str(error), "top5_error": str(error / 10)}
        for seed, error in enumerate(errors)
    ]


def test_the_interval_of_one_network_is_that_of_the_paired_t_test(claims: ModuleType) -> None:
    differences = [-1.2, -0.4, -0.9, 0.3]
    interval = claims.compute_interval([differences])
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.mean == pytest.approx(-0.55)


def test_the_interval_of_several_networks_is_that_of_a_linear_model(claims: ModuleType) -> None:
    groups = [[-1.2, -0.4, -0.9], [-3.0, -3.5], [0.4, 0.1, 0.2], [-2.0]]
    interval = claims.compute_interval(groups)
    # An indicator for each network; the mean of their coefficients is a contrast with the weights 1/4.
    values = np.concatenate(groups)
    design = np.repeat(np.eye(4), [len(group) for group in groups], axis=0)
    coefficients, (squares,), _, _ = np.linalg.lstsq(design, values, rcond=None)
    weights, degrees = np.full(4, 0.25), 9 - 4
    error = np.sqrt(squares / degrees * weights @ np.linalg.inv(design.T @ design) @ weights)
    expected = t(degrees, coefficients.mean(), error).interval(0.95)
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.mean == pytest.approx(coefficients.mean())


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([29.0, 30.1, 31.0], "confirmed"),  # about one point lower each time
        ([31.0, 32.1, 33.0], "refuted"),
        ([29.0, 33.0, 31.0], "not resolved"),
        ([29.0, 30.0], "not resolved"),  # two seeds show no spread
        ([29.0], "not resolved"),
    ],
)
def test_verdicts(better: list[float], verdict: str, claims: ModuleType) -> None:
    found = rows("none", "single", "crop10", [30.0, 31.0, 32.0]) + rows("spp", "single", "crop10", better)
    _, header, (line,) = claims.build_claims_table(found, "title")
    cells = dict(zip(header, line, strict=True))
    assert cells["claim"].startswith("Multi-level pooling helps")
    assert (cells["verdict"], cells["network"], cells["seeds"]) == (verdict, "zf5", str(len(better)))


@pytest.mark.parametrize(
    ("on_maps", "verdict"),
    [
        ([30.1, 31.0, 31.9], ["confirmed", "not resolved"]),  # the half width of top-5 is 0.025
        ([32.5, 33.6, 34.5], ["refuted", "higher"]),  # 0.25 of top-5
        ([30.9, 31.8, 32.9], ["not resolved", "higher"]),  # 0.087, with a half width of 0.014
        ([31.0, 30.0, 32.0], ["not resolved", "not resolved"]),
    ],
)
def test_equality_is_a_small_interval_around_zero(on_maps: list[float], verdict: list[str], claims: ModuleType) -> None:
    found = rows("spp", "single", "crop10", [30.0, 31.0, 32.0]) + rows("spp", "single", "map10", on_maps)
    _, _, lines = claims.build_claims_table(found, "title")
    assert [line[0].split(" (")[0] for line in lines] == [
        "Ten views on maps equal ten crops, within 0.1 points of top-5 error: map10 against crop10",
        "Ten views on maps against ten crops, in top-1 error",
    ]
    assert [line[-1] for line in lines] == verdict


def test_runs_are_paired_by_seed_network_and_training(claims: ModuleType) -> None:
    found = (
        rows("spp", "single", "crop1", [40.0, 41.0])
        + rows("spp", "single", "full1", [39.0])
        + rows("spp", "alternate", "full1", [10.0, 10.0])  # has no crop1
        + rows("spp", "single", "crop1", [50.0], net="overfeat7")
        + rows("spp", "single", "full1", [47.0, 20.0], net="overfeat7")
    )
    (claim,) = [each for each in claims.CLAIMS if each.words.startswith("The whole image beats")]
    assert [(each.net, each.seed, each.value) for each in claims.find_differences(claim, found)] == [
        ("zf5", "0", -1.0), ("overfeat7", "0", -3.0),
    ]  # fmt: skip


@pytest.mark.parametrize("other", [{"precision": "bf16-mixed"}, {"data_digest": "e"}, {"stored_side": "128"}])
def test_tests_of_other_kinds_are_no_pairs(other: dict[str, str], claims: ModuleType) -> None:
    found = (
        rows("spp", "single", "crop1", [40.0, 41.0])
        + rows("spp", "single", "full1", [39.0, 39.5])
        + rows("spp", "single", "crop1", [90.0, 90.0], **other)
    )
    (claim,) = [each for each in claims.CLAIMS if each.words.startswith("The whole image beats")]
    assert [(each.seed, each.value) for each in claims.find_differences(claim, found)] == [("0", -1.0), ("1", -1.5)]


def test_trainings_of_one_seed_count_as_one(claims: ModuleType) -> None:
    found = [
        row
        for sizes, gains in (("single", [-1.0, -3.0, -4.0]), ("alternate", [-2.0, -4.0, -7.0]))
        for row in rows("spp", sizes, "crop1", [40.0, 40.0, 40.0])
        + rows("spp", sizes, "full1", [40 + gain for gain in gains])
    ]
    _, _, (line,) = claims.build_claims_table(found, "title")
    # The means of the three seeds: -1.5, -3.5 and -5.5. -3.5 +- 4.3027 * 2 / sqrt(3).
    assert line[1:] == ["zf5", "3", "-3.50 [-8.47, +1.47]", "not resolved"]
    # A fourth seed of one training alone.
    given = {"seed": "3", "top1_error": "40.0"}
    found += [{**row, **given} for row in found[:1]] + [{**row, **given, "protocol": "full1"} for row in found[:1]]
    _, _, (again,) = claims.build_claims_table(found, "title")
    assert again == line


def test_several_networks_have_a_line_each_and_their_mean(claims: ModuleType) -> None:
    found = [
        row
        for net, errors in (("zf5", [29.0, 30.0, 29.5]), ("overfeat7", [26.9, 28.1]))
        for row in rows("none", "single", "crop10", [30.0, 31.0, 32.0], net=net)
        + rows("spp", "single", "crop10", errors, net=net)
    ]
    _, _, lines = claims.build_claims_table(found, "title")
    assert [line[:3] for line in lines[1:]] == [["", "zf5", "3"], ["", "overfeat7", "2"]]
    assert lines[0][1:3] == ["mean of 2", "3 + 2"]
    assert lines[0][3].startswith("-2.25 [")  # half of -1.5 and -3
    assert [line[4] for line in lines] == ["confirmed", "not resolved", "not resolved"]


def test_runs_of_one_seed_resolve_nothing(claims: ModuleType) -> None:
    found = [
        row
        for sizes, error in (("single", 30.0), ("alternate", 30.1))
        for row in rows("avg", sizes, "full1", [error]) + rows("spp", sizes, "full1", [error - 5])
    ]
    _, _, (line,) = claims.build_claims_table(found, "title")
    assert line[1:] == ["zf5", "1", "-5.00", "not resolved"]


def test_pooling_and_sizes_of_a_network_of_today(claims: ModuleType) -> None:
    found = (
        rows("avg", "single", "crop10", [20.0, 21.0])
        + rows("spp", "single", "crop10", [18.0, 20.0])
        + rows("spp", "progressive", "crop10", [19.0, 20.5])
        + rows("avg", "alternate", "crop10", [19.0])
    )
    _, _, lines = claims.build_claims_table(found, "title")
    differences = {line[0].split(":")[0].split(" (")[0]: line[3].split(" ")[0] for line in lines}
    assert differences == {
        "Multi-size training helps": "-1.00",
        "SPP in place of average pooling, ten crops": "-1.50",
        "Sizes that grow over the run against one size": "+0.75",
    }


def test_warping_is_compared_at_one_scale(claims: ModuleType) -> None:
    found = rows("spp", "single", "warp1", [40.0]) + rows("spp", "single", "full1", [30.0])
    assert claims.build_claims_table(found, "title")[2] == []
    found += rows("spp", "single", claims.FULL_AT_224, [39.0])
    _, _, (line, smaller) = claims.build_claims_table(found, "title")
    assert line[1:] == ["zf5", "1", "-1.00", "not resolved"]
    assert (smaller[0].split(",")[0], smaller[3]) == ("The whole image smaller", "+9.00")


def test_the_summary_has_a_column_for_each_data_set(claims: ModuleType) -> None:
    first = rows("none", "single", "crop10", [30.0, 31.0, 32.0]) + rows("spp", "single", "crop10", [29.0, 29.9, 30.9])
    second = [
        row
        for net, number in (("zf5", 2), ("overfeat7", 3))
        for row in rows("spp", "single", "crop1", [40.0, 40.0, 40.0], net=net)
        + rows("spp", "single", "full1", [39.0, 41.0, 40.0][:number], net=net)
    ]
    second += rows("spp", "single", "map98", [30.0, 31.0]) + rows("spp", "single", "crop10", [31.0, 30.0])
    second += rows("avg", "single", "crop10", [20.0])
    _, header, lines = claims.build_summary_table({"A": first, "B": second}, "title")
    assert header[1:] == ("A: 1 network, 3 seeds", "B: 2 networks, 2 to 3 seeds")
    # Three differences, -1, -1.1 and -1.1: a half width of 4.303 x 0.0577 / sqrt(3) by Student's t. Five of two
    # networks: squares of 2 and three degrees, 3.182 x sqrt(2 / 3 x (1/2 + 1/3)) / 2.
    assert [line[1:] for line in lines] == [
        ["-1.07 [-1.21, -0.92]: confirmed", ""],
        ["", "+0.00 [-1.68, +1.68]: not resolved"],
    ]


def test_the_last_row_of_a_seed_counts() -> None:
    found = rows("spp", "single", "crop1", [40.0]) + rows("spp", "single", "crop1", [38.0])
    (members,) = group_by_seed(found).values()
    assert members["0"]["top1_error"] == "38.0"


def test_spread() -> None:
    assert str(compute_spread([1.0, 2.0, 4.0])) == "2.33 ± 1.53"
    assert str(compute_spread([3.0])) == "3.00"
