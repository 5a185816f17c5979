"""Results of several seeds: their mean and spread, and differences between runs of the same seed."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A row of eval.py's CSV file, as text.
TextRow = Mapping[str, str]

# Rows that agree in these differ in their seed, and in the epoch of their best checkpoint. That one recipe trained them
# is for the user to see to: docs/testing.md.
CELL_KEY = (
    "data", "data_digest", "stored_side", "networks", "net", "width", "parameters", "pooling", "levels", "sizes",
    "input_size", "precision", "protocol",
)  # fmt: skip

# Between what the networks of an ensemble differ in, such as their seeds.
JOINT = " + "


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value) of `count` values."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


def compute_spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of one value or more."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.mean(values), deviation, len(values))


def select_single(rows: Sequence[TextRow]) -> list[TextRow]:
    """Return the rows of single networks; the others are of ensembles."""
    return [row for row in rows if row["networks"] in ("", "1")]


def keep_last(rows: Sequence[TextRow]) -> list[TextRow]:
    """Keep the last row of each run and protocol: a run may have been tested, gone on and been tested again."""
    return list({tuple(row[column] for column in (*CELL_KEY, "seed")): row for row in rows}.values())


def group_by_seed(rows: Sequence[TextRow]) -> dict[tuple[str, ...], dict[str, TextRow]]:
    """Group rows by all that a result depends on but its seed; of one seed the last row counts."""
    groups: dict[tuple[str, ...], dict[str, TextRow]] = defaultdict(dict)
    for row in rows:
        groups[tuple(row[column] for column in CELL_KEY)][row["seed"]] = row
    return dict(groups)


def summarise(rows: Mapping[str, TextRow], column: str) -> Spread:
    """Return the spread of a column over seeds."""
    return compute_spread([float(row[column]) for row in rows.values()])


def pair_differences(rows: Mapping[str, TextRow], baseline: Mapping[str, TextRow], column: str) -> list[float]:
    """Subtract a column of `baseline` from that of `rows`, for each seed that both have."""
    return [float(rows[seed][column]) - float(baseline[seed][column]) for seed in rows if seed in baseline]
