"""The tables of small trainings: cells beside the paper's, every protocol, and ensembles."""

import hashlib
import statistics
from collections.abc import Sequence

from report.claims import compute_interval, judge
from spp_cls.cli.errors import UserError
from spp_cls.cli.terminal import Table
from spp_cls.evaluation.protocols import PROTOCOLS
from spp_cls.evaluation.seeds import JOINT, TextRow, group_by_seed, pair_differences, select_single, summarise

# What a test of one checkpoint is known by.
_TEST = ("checkpoint", "data_digest", "precision", "protocol")


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
        cell = row["net"], row["pooling"], row["sizes"]
        if cell in by_cell:
            raise UserError(
                f"{' '.join(cell)} has results that differ in more than their seed; leave out the rows of all but one"
            )
        by_cell[cell] = members
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
            interval = compute_interval([differences])
            shown = [str(interval), judge(interval), f"{error:.2f}", f"{error - baselines[net]:+.2f}"]
        cells.append([paper_row["row"], str(spread), spread.count, *shown])
    return title, header, cells


def build_protocols_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of every cell under every protocol: mean and deviation of the top-1 error over seeds."""
    rows = select_single(rows)
    groups = group_by_seed(rows)
    found = dict.fromkeys(row["protocol"] for row in rows)
    protocols = sorted(found, key=[*PROTOCOLS, *found].index)
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
    return f"{images:,} images: standard error of one result {100 * (share * (1 - share) / images) ** 0.5:.1f}"


def build_ensembles_table(rows: Sequence[TextRow], title: str) -> Table:
    """Build the table of ensembles: the error of averaged scores, beside their networks' where these are known."""
    header = ("net", "pooling", "sizes", "seeds", "protocol", "ensemble", "its networks", "gain over their mean")
    single = select_single(rows)
    alone = {tuple(row[name] for name in _TEST): row for row in single}
    cells = []
    for ensemble in (row for row in rows if row not in single):
        test = tuple(ensemble[name] for name in _TEST[1:])
        members = [alone.get((path, *test)) for path in ensemble["checkpoint"].split(JOINT)]
        error, shown = float(ensemble["top1_error"]), ["", ""]
        found = [row for row in members if row]
        # Of these very checkpoints, and not of a later epoch of the same runs.
        digests = "".join(row["checkpoint_sha256"] for row in found)
        if hashlib.sha256(digests.encode()).hexdigest() == ensemble["checkpoint_sha256"]:
            errors = [float(row["top1_error"]) for row in found]
            shown = [" ".join(f"{each:.2f}" for each in errors), f"{statistics.mean(errors) - error:.2f}"]
        identity = (ensemble[name] for name in ("net", "pooling", "sizes", "seed", "protocol"))
        cells.append([*identity, f"{error:.2f}", *shown])
    return title, header, cells
