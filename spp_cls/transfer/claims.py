"""What the paper says of features, tested on our results: confirmed, refuted or not resolved."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError, shorten
from spp_cls.cli.terminal import Table
from spp_cls.evaluation.tables import name_data

Row = Mapping[str, str]


class Claim(NamedTuple):
    """The paper says that one layer or view beats another, on one data set or on all."""

    text: str
    column: Literal["layer", "view"]
    better: str
    worse: str
    data: str | None = None


CLAIMS = (
    Claim("full views beat crops", "view", "full", "crop"),
    Claim("full views beat warped ones", "view", "full", "warp"),
    Claim("all levels beat the 6 x 6 level", "layer", "pool", "level:6"),
    Claim("the SPP layer beats the map of conv4", "layer", "pool", "maps:conv4", "caltech101"),
    Claim("the SPP layer beats the map of conv5", "layer", "pool", "maps:conv5", "caltech101"),
    Claim("the SPP layer beats the first hidden layer", "layer", "pool", "hidden1", "caltech101"),
    Claim("the first hidden layer beats the second", "layer", "hidden1", "hidden2", "caltech101"),
    Claim("the second hidden layer beats the first", "layer", "hidden2", "hidden1", "voc2007"),
)

# Rows that agree in these are of networks trained alike.
_NET = ("net", "pooling", "levels", "width", "sizes", "input_size", "epochs")


def name_cost(row: Row) -> str:
    """Return the value of C, or `chosen` if there were several: each layer may have chosen its own."""
    # Rows of earlier versions do not say which there were.
    were_several = " " in row["costs"] if row["costs"] else row["validation"]
    return "chosen" if were_several else row["C"]


def get_setting(row: Row) -> tuple[str, ...]:
    """Return what rows must have in common to be compared: the network, the SVM and the images."""
    names = ("network_sha256", "precision", "svm", "seed", "train_images", "test_images")
    return (row["costs"] or name_cost(row), *(row[name] for name in names))


def build_claims_tables(ours: Sequence[Row]) -> list[Table]:
    """Build for each data set the tables of the paper's claims and of the best layers, by network.

    The difference of a draw is the mean over all layers, views and sides that have both. A claim is confirmed where
    each draw agrees with it, refuted where each contradicts it, and else, or with a single draw, not resolved: the
    draws share images, so that the deviation of their mean would promise too much.

    Raises:
        UserError: if the results of a row's draws are no numbers.
    """
    tables: list[Table] = []
    fixed = [row for row in ours if row["is_side_chosen"] == "False"]
    for data in dict.fromkeys(name_data(row) for row in fixed):
        nets: dict[tuple[str, ...], list[Row]] = {}
        for row in (row for row in fixed if name_data(row) == data):
            draws = str(len(_read_draws(row)))
            nets.setdefault((*(row[name] for name in _NET), draws), []).append(row)
        names = [_name_net(rows[0]) for rows in nets.values()]
        claims = [claim for claim in CLAIMS if claim.data in (None, data)]
        found = [[claim.text, *(_judge(claim, rows) for rows in nets.values())] for claim in claims]
        if any(any(cells[1:]) for cells in found):
            header = ("difference, draws that agree, verdict", *names)
            tables.append((f"The paper's claims, {data}", header, [cells for cells in found if any(cells[1:])]))
        best = [_count_best(rows) for rows in nets.values()]
        layers = list(dict.fromkeys(layer for counts in best for layer in counts))
        if layers:
            lines = [
                [name, *(counts.get(layer, "") for layer in layers)] for name, counts in zip(names, best, strict=True)
            ]
            tables.append(
                (f"Of the draws of each view and side, those where a layer is the best, {data}", ("", *layers), lines)
            )
    return tables


def _name_net(row: Row) -> str:
    pooling = "" if row["pooling"] == "spp" else f" ({row['pooling']})"
    width = "" if float(row["width"]) == 1 else f" x {float(row['width']):g}"
    return f"{row['net']}{width}{pooling}, {'untrained' if row['epochs'] == '0' else row['sizes']}"


def _judge(claim: Claim, rows: Sequence[Row]) -> str:
    differences = list(find_differences(claim, rows))
    if not differences:
        return ""
    values = np.mean(differences, axis=0)
    agreeing, opposite = int((values > 0).sum()), int((values < 0).sum())
    verdict = "not resolved"
    if len(values) > 1:
        verdict = {agreeing: "confirmed", opposite: "refuted"}.get(len(values), verdict)
    return f"{values.mean():+.2f}, {agreeing} of {len(values)}: {verdict}"


def find_differences(claim: Claim, rows: Sequence[Row]) -> Iterator[NDArray[np.float64]]:
    """Iterate over the pairs of rows that differ in the claim's layers or views alone: better less worse, by draw.

    `pool` is the SPP layer; the pooling of other networks is not what the paper speaks of.
    """
    rows = [row for row in rows if row["layer"] != "pool" or row["pooling"] == "spp"]
    other = "layer" if claim.column == "view" else "view"
    worse = {(row["side"], row[other], *get_setting(row)): row for row in rows if row[claim.column] == claim.worse}
    better = {(row["side"], row[other], *get_setting(row)): row for row in rows if row[claim.column] == claim.better}
    for pair, row in better.items():
        if pair in worse:
            yield _read_draws(row) - _read_draws(worse[pair])


def _count_best(rows: Sequence[Row]) -> dict[str, int]:
    """Count for each layer the draws of each view and side, of several layers, where no other layer is better."""
    places: dict[tuple[str, ...], dict[str, NDArray[np.float64]]] = {}
    for row in rows:
        places.setdefault((row["view"], row["side"], *get_setting(row)), {})[row["layer"]] = _read_draws(row)
    counts: dict[str, int] = {}
    for layers in places.values():
        if len(layers) > 1:
            best = np.max(list(layers.values()), axis=0)
            for layer, values in layers.items():
                counts[layer] = counts.get(layer, 0) + int((values == best).sum())
    return counts


def _read_draws(row: Row) -> NDArray[np.float64]:
    try:
        return np.array([float(value) for value in row["by_draw"].split()])
    except ValueError as error:
        raise UserError(
            f"a result of {row['net']}, {row['layer']}, {row['view']} {row['side']} is damaged (by_draw: "
            f"{shorten(error)}); remove that line"
        ) from error
