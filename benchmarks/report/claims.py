"""The paper's claims, tested on results of several seeds: confirmed, refuted or not resolved."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.stats import t

from spp_cls.cli.terminal import Table
from spp_cls.evaluation.protocols import make_protocol
from spp_cls.evaluation.seeds import TextRow, select_single

# The level of the intervals, and the degrees of freedom below which there is none: two runs show no spread.
LEVEL = 0.95
LEAST_DEGREES = 2

# The paper's tolerance for ten views on maps, in points of top-5 error.
EQUAL_WITHIN = 0.1


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences and its interval by Student's t; of too few there is no interval."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def compute_interval(groups: Sequence[Sequence[float]]) -> Interval:
    """Return the mean of the means of groups, such as the seeds of each network, with its interval.

    The interval is for other members of the same groups: what differs between the groups is not in it, and the variance
    within them is pooled.
    """
    means = [statistics.mean(group) for group in groups]
    mean, degrees = statistics.mean(means), sum(len(group) - 1 for group in groups)
    if degrees < LEAST_DEGREES:
        return Interval(mean, None, None)
    squares = sum((value - own) ** 2 for group, own in zip(groups, means, strict=True) for value in group)
    error = (squares / degrees * sum(1 / len(group) for group in groups)) ** 0.5 / len(groups)
    half = float(t.ppf((1 + LEVEL) / 2, degrees)) * error
    return Interval(mean, mean - half, mean + half)


class Side(NamedTuple):
    """One side of a comparison: values of columns that its rows have."""

    pooling: str | None = None
    sizes: str | None = None
    protocol: str | None = None

    def matches(self, row: TextRow) -> bool:
        """Return whether a row has all values that are given."""
        return all(value is None or row[name] == value for name, value in self._asdict().items())


class Claim(NamedTuple):
    """The paper says that the error of `better` is below that of `worse`, or that the two differ by a limit at most."""

    words: str
    better: Side
    worse: Side
    # What rows of both sides have in common when they are compared: beside these, their seed.
    paired_by: tuple[str, ...]
    error: str = "top1_error"
    # In points.
    equal_within: float | None = None
    is_of_paper: bool = True


_NET = ("data", "data_digest", "stored_side", "precision", "net", "width", "input_size")
_VIEWS = (*_NET, "pooling", "levels", "sizes")

# The whole image at the size that warp1 squeezes it to, and larger than full1 has it.
FULL_AT_224, FULL_AT_280 = (make_protocol([scale], ["full"], flips=False).name for scale in (224, 280))

CLAIMS = (
    Claim(
        "Multi-level pooling helps: SPP, single-size, against no SPP, crop10 (Table 2, b against a)",
        Side("spp", "single", "crop10"), Side("none", "single", "crop10"), _NET,
    ),
    Claim(
        "Multi-size training helps: against single-size, crop10 (Table 2, c against b)",
        Side(None, "alternate", "crop10"), Side(None, "single", "crop10"), (*_NET, "pooling", "levels"),
    ),
    Claim(
        "The whole image beats the crop: full1 against crop1 (Table 3)",
        Side("spp", None, "full1"), Side("spp", None, "crop1"), _VIEWS,
    ),
    # The paper has these two in top-5 error alone.
    Claim(
        f"Ten views on maps equal ten crops, within {EQUAL_WITHIN:g} points of top-5 error: map10 against crop10 "
        "(section 3.1.4)",
        Side("spp", None, "map10"), Side("spp", None, "crop10"), _VIEWS, "top5_error", EQUAL_WITHIN,
    ),
    Claim(
        "96 views beat 10, in top-5 error: map96 against crop10 (section 3.1.5)",
        Side("spp", None, "map96"), Side("spp", None, "crop10"), _VIEWS, "top5_error",
    ),
    Claim(
        "98 views beat 10: map98 against crop10 (Table 4)",
        Side("spp", None, "map98"), Side("spp", None, "crop10"), _VIEWS,
    ),
    Claim(
        "Warping hurts: the whole image at min side 224 against warp1, trained without warping (cf. section 3.3)",
        Side("spp", None, FULL_AT_224), Side("spp", None, "warp1"), _VIEWS,
    ),
    Claim(
        "Ten views on maps against ten crops, in top-1 error (not in the paper)",
        Side("spp", None, "map10"), Side("spp", None, "crop10"), _VIEWS, is_of_paper=False,
    ),
    Claim(
        "96 views on maps against ten on maps, in top-1 error (not in the paper)",
        Side("spp", None, "map96"), Side("spp", None, "map10"), _VIEWS, is_of_paper=False,
    ),
    Claim(
        "SPP in place of average pooling, ten crops (not in the paper)",
        Side("spp", None, "crop10"), Side("avg", None, "crop10"), (*_NET, "sizes"), is_of_paper=False,
    ),
    Claim(
        "SPP in place of average pooling, the whole image (not in the paper)",
        Side("spp", None, "full1"), Side("avg", None, "full1"), (*_NET, "sizes"), is_of_paper=False,
    ),
    Claim(
        "Sizes that grow over the run against one size (not in the paper)",
        Side(None, "progressive", "crop10"), Side(None, "single", "crop10"), (*_NET, "pooling", "levels"),
        is_of_paper=False,
    ),
    Claim(
        "The whole image smaller, at 224 for 256: custom:224 against full1 (not in the paper)",
        Side(None, None, FULL_AT_224), Side(None, None, "full1"), _VIEWS, is_of_paper=False,
    ),
    Claim(
        "The whole image larger, at 280 for 256: custom:280 against full1 (not in the paper)",
        Side(None, None, FULL_AT_280), Side(None, None, "full1"), _VIEWS, is_of_paper=False,
    ),
)  # fmt: skip


class Difference(NamedTuple):
    """A difference of errors in points, better less worse, of a pair of runs.

    `training` is what the two have in common beside the seed, such as SPP trained at two sizes.
    """

    net: str
    training: tuple[str, ...]
    seed: str
    value: float


def find_differences(claim: Claim, rows: Sequence[TextRow]) -> list[Difference]:
    """Return the difference of each pair of runs that a claim is about."""
    rows = select_single(rows)
    worse = {(_get_training(claim, row), row["seed"]): row for row in rows if claim.worse.matches(row)}
    differences = []
    for row in rows:
        training = _get_training(claim, row)
        other = worse.get((training, row["seed"]))
        if claim.better.matches(row) and other is not None:
            found = float(row[claim.error]) - float(other[claim.error])
            differences.append(Difference(row["net"], training, row["seed"], found))
    return differences


def group_differences(differences: Sequence[Difference]) -> dict[str, list[float]]:
    """Return the differences of each network, one a seed.

    Of the pairs of one network and seed, such as those of two trainings, it is the mean: they have initial weights and
    the order of images in common. A seed that lacks a training which another seed has is left out: means over other
    trainings would differ by them, not by chance.
    """
    found: dict[str, dict[str, dict[tuple[str, ...], float]]] = {}
    for each in differences:
        found.setdefault(each.net, {}).setdefault(each.seed, {})[each.training] = each.value
    groups = {}
    for net, seeds in found.items():
        trainings = {training for values in seeds.values() for training in values}
        if complete := [values for values in seeds.values() if len(values) == len(trainings)]:
            groups[net] = [statistics.mean(values.values()) for values in complete]
    return groups


def _get_training(claim: Claim, row: TextRow) -> tuple[str, ...]:
    return tuple(row[name] for name in claim.paired_by)


def judge(interval: Interval, equal_within: float | None = None) -> str:
    """Return whether an interval of differences is below 0, or with `equal_within` no farther from 0 than that."""
    if interval.low is None or interval.high is None:
        return "not resolved"
    if equal_within is not None:
        if interval.low > -equal_within and interval.high < equal_within:
            return "confirmed"
        return "refuted" if interval.low > equal_within or interval.high < -equal_within else "not resolved"
    return "confirmed" if interval.high < 0 else "refuted" if interval.low > 0 else "not resolved"


# The words of a verdict on a difference of which the paper says nothing.
_WITHOUT_CLAIM = {"confirmed": "lower", "refuted": "higher", "not resolved": "not resolved"}


def build_claims_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of all claims that `rows` can test: each network, and the mean of several."""
    header = ("claim", "network", "seeds", "difference of error, 95 % interval", "verdict")
    lines = []
    for claim in CLAIMS:
        nets = group_differences(find_differences(claim, rows))
        shown = {net: [values] for net, values in nets.items()}
        if len(nets) > 1:
            shown = {f"mean of {len(nets)}": list(nets.values())} | shown
        for place, (name, groups) in enumerate(shown.items()):
            interval = compute_interval(groups)
            seeds = " + ".join(str(len(group)) for group in groups)
            verdict = judge(interval, claim.equal_within)
            if not claim.is_of_paper:
                verdict = _WITHOUT_CLAIM[verdict]
            lines.append([claim.words if not place else "", name, seeds, str(interval), verdict])
    return title, header, lines


def build_summary_table(rows: Mapping[str, Sequence[TextRow]], title: str) -> Table:
    """Build the table of the paper's claims on several data sets, the keys of `rows`: the mean of the networks."""
    claims = [claim for claim in CLAIMS if claim.is_of_paper]
    columns = {}
    for name, own in rows.items():
        found = [group_differences(find_differences(claim, own)) for claim in claims]
        if any(cells := [_summarise(claim, nets) for claim, nets in zip(claims, found, strict=True)]):
            columns[f"{name}: {_describe_runs(found)}"] = cells
    lines = [[claim.words, *shown] for claim, *shown in zip(claims, *columns.values(), strict=True) if any(shown)]
    return title, ("claim of the paper: difference of error in points", *columns), lines


def _summarise(claim: Claim, nets: Mapping[str, Sequence[float]]) -> str:
    if not nets or (interval := compute_interval(list(nets.values()))).low is None:
        return ""
    return f"{interval}: {judge(interval, claim.equal_within)}"


def _describe_runs(claims: Sequence[Mapping[str, Sequence[float]]]) -> str:
    """Return the number of networks, and of seeds of each, that stand behind the claims of a column."""
    names = {net for nets in claims for net in nets}
    seeds = {len(values) for nets in claims for values in nets.values()}
    counts = f"{max(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"{len(names)} network{'s' * (len(names) > 1)}, {counts} seeds"
