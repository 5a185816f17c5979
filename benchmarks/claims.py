"""The paper's claims, tested on results of several seeds: confirmed, refuted or not resolved."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.stats import t

from spp_cls.cli.terminal import Table
from spp_cls.evaluation.seeds import JOINT, TextRow, group_by_seed, pair_differences, summarise

# The level of the intervals.
LEVEL = 0.95

# Errors closer than this, in percentage points, count as equal: the paper's own differences between ten crops and ten
# windows on maps are smaller.
EQUAL_WITHIN = 0.5


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences and its interval by Student's t; a single pair has no interval."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def compute_interval(differences: Sequence[float]) -> Interval:
    """Return the mean of one difference or more, with its interval."""
    mean, count = statistics.mean(differences), len(differences)
    if count == 1:
        return Interval(mean, None, None, count)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * statistics.stdev(differences) / count**0.5
    return Interval(mean, mean - half, mean + half, count)


class Side(NamedTuple):
    """One side of a comparison: values of columns that its rows have."""

    pooling: str | None = None
    sizes: str | None = None
    protocol: str | None = None

    def matches(self, row: TextRow) -> bool:
        """Return whether a row has all values that are given."""
        return all(value is None or row[name] == value for name, value in self._asdict().items())


class Claim(NamedTuple):
    """The paper says that the error of `better` is below that of `worse`, or that the two are equal."""

    words: str
    better: Side
    worse: Side
    # What rows of both sides have in common when they are compared: beside these, their seed.
    paired_by: tuple[str, ...]
    is_equal: bool = False


_NET = ("data", "net", "width", "input_size")
_VIEWS = (*_NET, "pooling", "sizes")

CLAIMS = (
    Claim(
        "Multi-level pooling helps: SPP, single-size, against no SPP, crop10 (Table 2, b against a)",
        Side("spp", "single", "crop10"), Side("none", "single", "crop10"), _NET,
    ),
    Claim(
        "Multi-size training helps: against single-size, crop10 (Table 2, c against b)",
        Side(None, "alternate", "crop10"), Side(None, "single", "crop10"), (*_NET, "pooling"),
    ),
    Claim(
        "The whole image beats the crop: full1 against crop1 (Table 3)",
        Side("spp", None, "full1"), Side("spp", None, "crop1"), _VIEWS,
    ),
    Claim(
        "Ten views on maps equal ten crops: map10 against crop10 (section 3.1.4)",
        Side("spp", None, "map10"), Side("spp", None, "crop10"), _VIEWS, is_equal=True,
    ),
    Claim(
        "96 views beat 10: map96 against map10 (section 3.1.5)",
        Side("spp", None, "map96"), Side("spp", None, "map10"), _VIEWS,
    ),
    Claim(
        "Warping hurts: full1 against warp1, the image squeezed to a square (section 3.3)",
        Side("spp", None, "full1"), Side("spp", None, "warp1"), _VIEWS,
    ),
    Claim(
        "SPP in place of average pooling, ten crops (not in the paper)",
        Side("spp", None, "crop10"), Side("avg", None, "crop10"), (*_NET, "sizes"),
    ),
    Claim(
        "SPP in place of average pooling, the whole image (not in the paper)",
        Side("spp", None, "full1"), Side("avg", None, "full1"), (*_NET, "sizes"),
    ),
    Claim(
        "Sizes that grow over the run against one size (not in the paper)",
        Side(None, "progressive", "crop10"), Side(None, "single", "crop10"), (*_NET, "pooling"),
    ),
)  # fmt: skip


class Difference(NamedTuple):
    """A difference of top-1 errors, better less worse, of a pair of runs."""

    net: str
    seed: str
    value: float


def find_differences(claim: Claim, rows: Sequence[TextRow]) -> list[Difference]:
    """Return the difference of each pair of runs that a claim is about."""
    rows = select_single(rows)
    worse = {_get_pair(claim, row): row for row in rows if claim.worse.matches(row)}
    differences = []
    for row in rows:
        other = worse.get(_get_pair(claim, row))
        if claim.better.matches(row) and other is not None:
            found = float(row["top1_error"]) - float(other["top1_error"])
            differences.append(Difference(row["net"], row["seed"], found))
    return differences


def average(differences: Sequence[Difference]) -> Interval:
    """Return the mean of differences, with its interval if they are of several seeds.

    Pairs of one network and seed, such as those of two trainings, count as one, their mean: they have first weights and
    the order of images in common. So have all of one seed.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for each in differences:
        groups.setdefault((each.net, each.seed), []).append(each.value)
    values = [statistics.mean(members) for members in groups.values()]
    if len({each.seed for each in differences}) == 1:
        return Interval(statistics.mean(values), None, None, len(values))
    return compute_interval(values)


def select_single(rows: Sequence[TextRow]) -> list[TextRow]:
    """Return the rows of single networks; the others are of ensembles."""
    return [row for row in rows if row["networks"] in ("", "1")]


def _get_pair(claim: Claim, row: TextRow) -> tuple[str, ...]:
    return tuple(row[name] for name in (*claim.paired_by, "seed"))


def judge(interval: Interval, is_equal: bool = False) -> str:
    """Return whether an interval of differences is below 0, or with `is_equal` within the limit of equality."""
    if interval.low is None or interval.high is None:
        return "not resolved"
    if is_equal:
        if interval.low > -EQUAL_WITHIN and interval.high < EQUAL_WITHIN:
            return "confirmed"
        return "refuted" if interval.low > EQUAL_WITHIN or interval.high < -EQUAL_WITHIN else "not resolved"
    return "confirmed" if interval.high < 0 else "refuted" if interval.low > 0 else "not resolved"


def build_claims_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of all claims that `rows` can test: difference, interval, pairs of runs and verdict."""
    header = ("claim", "difference of top-1 error, 95 % interval", "pairs of runs", "by network", "verdict")
    cells = []
    for claim in CLAIMS:
        differences = find_differences(claim, rows)
        if differences:
            interval = average(differences)
            nets: dict[str, list[float]] = {}
            for each in differences:
                nets.setdefault(each.net, []).append(each.value)
            by_net = "; ".join(f"{net} {statistics.mean(values):+.2f}" for net, values in nets.items())
            cells.append([claim.words, str(interval), len(differences), by_net, judge(interval, claim.is_equal)])
    return title, header, cells


def build_summary_table(rows: Mapping[str, Sequence[TextRow]], title: str) -> Table:
    """Build the table of the paper's claims on several data sets, the keys of `rows`, from two seeds on."""
    claims = [claim for claim in CLAIMS if "not in the paper" not in claim.words]
    columns = {
        name: cells
        for name, own in rows.items()
        if any(cells := [_summarise(claim, find_differences(claim, own)) for claim in claims])
    }
    lines = [[claim.words, *shown] for claim, *shown in zip(claims, *columns.values(), strict=True) if any(shown)]
    return title, ("claim of the paper: difference of top-1 error in points", *columns), lines


def _summarise(claim: Claim, differences: Sequence[Difference]) -> str:
    if not differences or (interval := average(differences)).low is None:
        return ""
    return f"{interval}: {judge(interval, claim.is_equal)}"


def build_cells_table(rows: Sequence[TextRow], paper: Sequence[TextRow], title: str) -> Table:
    """Build Table 2 of small networks: each cell's mean and deviation, and its difference to the cell without SPP.

    The paper's difference stands beside ours; `verdict` says whether ours has its sign.
    """
    header = (
        "cell", "top-1 error", "seeds", "difference to no SPP, 95 % interval", "verdict", "paper's error",
        "paper's difference",
    )  # fmt: skip
    ours = group_by_seed([row for row in select_single(rows) if row["protocol"] == "crop10"])
    by_cell = {}
    for members in ours.values():
        row = next(iter(members.values()))
        by_cell[row["net"], row["pooling"], row["sizes"]] = members
    cells = []
    baselines: dict[str, float] = {}
    for paper_row in (row for row in paper if row["table"] == "2"):
        net, pooling, sizes = paper_row["net"], paper_row["pooling"], paper_row["sizes"]
        error = float(paper_row["top1_error"])
        if pooling == "none":
            baselines[net] = error
        found = by_cell.get((net, pooling, sizes))
        if not found:
            continue
        spread = summarise(found, "top1_error")
        shown = ["", "", f"{error:.2f}", ""]
        baseline = by_cell.get((net, "none", "single"))
        differences = pair_differences(found, baseline, "top1_error") if pooling != "none" and baseline else []
        if differences:
            interval = compute_interval(differences)
            shown = [str(interval), judge(interval), f"{error:.2f}", f"{error - baselines[net]:+.2f}"]
        cells.append([paper_row["row"], str(spread), spread.count, *shown])
    return title, header, cells


def build_protocols_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of every cell under every protocol: mean and deviation of the top-1 error over seeds."""
    rows = select_single(rows)
    groups = group_by_seed(rows)
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for members in groups.values():
        row = next(iter(members.values()))
        cell = (row["data"], row["net"], row["width"], row["pooling"], row["sizes"], str(len(members)))
        lines.setdefault(cell, {})[row["protocol"]] = str(summarise(members, "top1_error"))
    header = ("data", "net", "width", "pooling", "sizes", "seeds", *protocols)
    table = [[*cell, *(errors.get(name, "") for name in protocols)] for cell, errors in lines.items()]
    return f"{title} ({_describe_noise(rows)})" if rows else title, header, table


def _describe_noise(rows: Sequence[TextRow]) -> str:
    """Return how many images were tested, and the standard error that their number alone gives an error."""
    images = int(rows[0]["images"])
    share = statistics.mean(float(row["top1_error"]) for row in rows) / 100
    return f"{images:,} images: standard error of one figure {100 * (share * (1 - share) / images) ** 0.5:.1f}"


def build_ensembles_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of ensembles: the error of averaged scores beside those of their members, by seed."""
    header = ("net", "pooling", "sizes", "protocol", "seeds", "ensemble", "its networks", "gain over their mean")
    cells = []
    for ensemble in (row for row in rows if row["networks"] not in ("", "1")):
        columns = ("data_digest", "net", "width", "pooling", "levels", "sizes", "protocol")
        seeds = ensemble["seed"].split(JOINT)
        members = {
            row["seed"]: float(row["top1_error"])
            for row in select_single(rows)
            if all(row[name] == ensemble[name] for name in columns) and row["seed"] in seeds
        }
        error = float(ensemble["top1_error"])
        if len(members) == len(seeds):
            shown = [f"{members[seed]:.2f}" for seed in seeds]
            gain = statistics.mean(members.values()) - error
            identity = (ensemble[name] for name in ("net", "pooling", "sizes", "protocol"))
            cells.append([*identity, " ".join(seeds), f"{error:.2f}", " ".join(shown), f"{gain:.2f}"])
    return title, header, cells
