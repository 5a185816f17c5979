"""Test checkpoints: python eval.py ckpt=PATH [key=value ...]; conf/eval.yaml lists the keys."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from spp_cls import UserError
from spp_cls.cli import command
from spp_cls.cli.keys import EvalKeys
from spp_cls.cli.targets import import_plugins
from spp_cls.cli.terminal import format_table
from spp_cls.data.loading.workers import count_workers
from spp_cls.data.sources import identify_source, open_source
from spp_cls.evaluation.csv_files import check_distinct, check_writable
from spp_cls.evaluation.evaluate import NeedsAnySizeError, OtherClassesError
from spp_cls.evaluation.predictions import COLUMNS, Predictions, write_csv
from spp_cls.evaluation.protocols import Protocol
from spp_cls.evaluation.report import (
    TEST_KEY,
    choose_protocols,
    evaluate_checkpoints,
    find_checkpoints,
    group_checkpoints,
)
from spp_cls.evaluation.rows import Row, append_csv, check_csv, read_csv

# Rows, and the predictions by protocol.
Results = tuple[list[Row], dict[str, Predictions]]

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def test(keys: EvalKeys, cfg: DictConfig) -> None:
    """Test a checkpoint, or all of a folder; print a table and, as the last line, the rows as JSON."""
    check_distinct(out=keys.out, predictions=keys.predictions)
    import_plugins(keys.plugins)
    protocols = choose_protocols(keys.protocol, keys.scales, keys.positions, keys.flips)
    paths = find_checkpoints(keys.ckpt)
    groups = group_checkpoints(paths, keys.ensemble)
    if keys.predictions and len(groups) > 1 and not keys.ensemble:
        raise UserError(f"predictions are for one checkpoint, and ckpt has {len(groups)}; name one")
    # What is named by itself is tested again.
    is_named = isinstance(keys.ckpt, str) and paths == [Path(keys.ckpt)]
    is_sweep = not is_named and not keys.predictions
    written = read_csv(keys.out) if keys.out and is_sweep else []
    done = {tuple(row[column] for column in TEST_KEY) for row in written}
    source = open_source(keys.data.kind, keys.data.root, "val")
    data = identify_source(keys.data.kind, keys.data.root, source)
    with command.convert_lightning_errors("trainer"):
        fabric = Fabric(**asdict(keys.trainer))
    fabric.launch()
    if fabric.is_global_zero:
        # Better to find a file that cannot be written before the work than after it.
        if keys.out:
            check_csv(keys.out)
        if keys.predictions:
            check_writable(keys.predictions, "predictions", COLUMNS)
    # Others may have added rows between the readings of two processes.
    done = fabric.broadcast(done)
    workers = count_workers(keys.data.num_workers, fabric.world_size // keys.trainer.num_nodes)
    test_members = partial(
        evaluate_checkpoints, source=source, data=data, fabric=fabric,
        max_pixels=keys.max_pixels, num_workers=workers, timeout=keys.data.timeout, done=done,
    )  # fmt: skip
    # A folder may have runs of other data sets, and some without SPP. What is named must run all that is asked.
    is_folder = isinstance(keys.ckpt, str) and len(paths) > 1 and not keys.ensemble
    rows: list[Row] = []
    left_out = 0
    for members in groups:
        found = test_what_fits(test_members, members, protocols) if is_folder else test_members(members, protocols)
        if found is None:
            left_out += 1
            continue
        new, predictions = found
        rows += new
        if fabric.is_global_zero:
            if keys.out:
                append_csv(new, keys.out)
            if keys.predictions and members is groups[-1]:
                write_csv(predictions, source, keys.predictions)
    if left_out == len(groups):
        raise UserError(f"nothing below {keys.ckpt} can be tested like this; choose other data or protocols")
    if fabric.is_global_zero:
        header = ("checkpoint", "protocol", "views", "top-1 error %", "top-5 error %", "images")
        cells = [(r.checkpoint, r.protocol, r.views, r.top1_error, r.top5_error, r.images) for r in rows]
        print(format_table(header, cells))
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


def test_what_fits(
    test_members: Callable[..., Results], members: list[Path], protocols: list[Protocol] | None
) -> Results | None:
    """Test a run under the protocols that it can run, and print what is left out; return None if all is."""
    try:
        return test_members(members, protocols)
    except NeedsAnySizeError as error:
        reason: UserError = error
        rest = [protocol for protocol in protocols or () if protocol not in error.protocols]
    except OtherClassesError as error:
        reason, rest = error, []
    left_out = "tested in part" if rest else "not tested"
    rank_zero_only(print)(f"{left_out}: {members[0]}, as {reason}", file=sys.stderr)
    return test_members(members, rest) if rest else None


if __name__ == "__main__":
    command.run(test, CONFIG_DIR, "eval")
