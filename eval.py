"""Test checkpoints: python eval.py ckpt=PATH [key=value ...]; conf/eval.yaml lists the keys."""

import json
from dataclasses import asdict
from pathlib import Path

from lightning_fabric import Fabric
from omegaconf import DictConfig

from spp_cls import UserError, command
from spp_cls.data.sources import open_source
from spp_cls.data.workers import worker_count
from spp_cls.evaluation.predictions import write_csv
from spp_cls.evaluation.report import checkpoint_rows, checkpoints_in, chosen_protocols
from spp_cls.rows import Row, append_csv, read_csv
from spp_cls.text_tables import terminal_table

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def test(cfg: DictConfig) -> None:
    """Test a checkpoint, or all of a folder; print a table and, as the last line, the rows as JSON."""
    options = command.plain(cfg)
    protocols = chosen_protocols(options["protocol"], options["scales"], options["positions"], options["flips"])
    paths = checkpoints_in(cfg.ckpt)
    if cfg.predictions and len(paths) > 1:
        raise UserError(f"predictions are for one checkpoint, and {cfg.ckpt} has {len(paths)}; name one")
    written = read_csv(cfg.out) if cfg.out else []
    done = {(row["checkpoint_sha256"], row["protocol"], row["data"]) for row in written if Path(cfg.ckpt).is_dir()}
    files = open_source(cfg.data.kind, cfg.data.root, "val")
    data = Path(cfg.data.root).absolute().name if cfg.data.kind == "imagefolder" else cfg.data.kind
    with command.settings_of("trainer"):
        fabric = Fabric(**options["trainer"])
    fabric.launch()
    if cfg.out and fabric.is_global_zero:
        # A file that cannot be written is better known before the work than after.
        append_csv([], cfg.out)
    rows: list[Row] = []
    for path in paths:
        new, predictions = checkpoint_rows(
            path,
            protocols,
            files,
            data,
            fabric,
            precision=str(cfg.trainer.precision),
            max_pixels=cfg.max_pixels,
            num_workers=worker_count(cfg.data.num_workers, fabric.world_size // cfg.trainer.num_nodes),
            done=frozenset(done),
        )
        rows += new
        if fabric.is_global_zero:
            if cfg.out:
                append_csv(new, cfg.out)
            if cfg.predictions and predictions:
                write_csv(predictions, files, cfg.predictions)
    if fabric.is_global_zero:
        header = ("checkpoint", "protocol", "views", "top-1 error %", "top-5 error %", "images")
        cells = [(r.checkpoint, r.protocol, r.views, r.top1_error, r.top5_error, r.images) for r in rows]
        print(terminal_table(header, cells))
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    command.run(test, CONFIG_DIR, "eval")
