"""Test checkpoints: python eval.py ckpt=PATH [key=value ...]; conf/eval.yaml lists the keys."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from lightning_fabric import Fabric
from omegaconf import DictConfig

from spp_cls import UserError
from spp_cls.cli import command
from spp_cls.cli.keys import EvalKeys
from spp_cls.cli.targets import import_plugins
from spp_cls.cli.terminal import format_table
from spp_cls.data.loading.workers import count_workers
from spp_cls.data.sources import identify_source, open_source
from spp_cls.evaluation.csv_files import check_writable
from spp_cls.evaluation.evaluate import OtherClassesError
from spp_cls.evaluation.predictions import write_csv
from spp_cls.evaluation.report import (
    TEST_KEY,
    choose_protocols,
    evaluate_checkpoints,
    find_checkpoints,
    group_checkpoints,
)
from spp_cls.evaluation.rows import Row, append_csv, read_csv

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def test(keys: EvalKeys, cfg: DictConfig) -> None:
    """Test a checkpoint, or all of a folder; print a table and, as the last line, the rows as JSON."""
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
            append_csv([], keys.out)
        if keys.predictions:
            check_writable(keys.predictions, "predictions")
    # Others may have added rows between the readings of two processes.
    done = fabric.broadcast(done)
    workers = count_workers(keys.data.num_workers, fabric.world_size // keys.trainer.num_nodes)
    rows: list[Row] = []
    left_out = 0
    for members in groups:
        try:
            new, predictions = evaluate_checkpoints(
                members, protocols, source, data, fabric, precision=keys.trainer.precision, max_pixels=keys.max_pixels,
                num_workers=workers, timeout=keys.data.timeout, done=done,
            )  # fmt: skip
        except OtherClassesError as error:
            # A folder of runs may have some of other data sets; what is named, or averaged, must fit.
            left_out += 1
            if keys.ensemble or not isinstance(keys.ckpt, str) or left_out == len(groups):
                raise
            if fabric.is_global_zero:
                print(f"not tested: {members[0]}, as {error}", file=sys.stderr)
            continue
        rows += new
        if fabric.is_global_zero:
            if keys.out:
                append_csv(new, keys.out)
            if keys.predictions and members is groups[-1]:
                write_csv(predictions, source, keys.predictions)
    if fabric.is_global_zero:
        header = ("checkpoint", "protocol", "views", "top-1 error %", "top-5 error %", "images")
        cells = [(r.checkpoint, r.protocol, r.views, r.top1_error, r.top5_error, r.images) for r in rows]
        print(format_table(header, cells))
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    command.run(test, CONFIG_DIR, "eval")
