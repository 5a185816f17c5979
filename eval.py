"""Test a checkpoint: python eval.py ckpt=PATH [key=value ...]; conf/eval.yaml lists the keys."""

import json
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from lightning_fabric import Fabric
from omegaconf import DictConfig

from spp_cls import command
from spp_cls.checkpoint import load_checkpoint, net_from_checkpoint, training_sizes
from spp_cls.data.sources import open_source
from spp_cls.evaluation.evaluate import evaluate
from spp_cls.evaluation.predictions import write_csv
from spp_cls.evaluation.views import get_protocol
from spp_cls.tables import Row, append_csv, file_sha256, hardware, terminal_table

CONFIG_DIR = Path(__file__).parent.resolve() / "conf"


def test(cfg: DictConfig) -> None:
    """Score the checkpoint under each protocol; print a table and, as the last line, the rows as JSON."""
    protocols = [get_protocol(name) for name in cfg.protocol]
    checkpoint = load_checkpoint(cfg.ckpt)
    net = net_from_checkpoint(checkpoint)
    files = open_source(cfg.data.kind, cfg.data.root, "val")
    fabric = Fabric(**command.plain(cfg.trainer))
    fabric.launch()
    fabric.to_device(net.to(memory_format=torch.channels_last))
    start = time.perf_counter()
    results = evaluate(net, files, protocols, fabric, cfg.max_pixels, cfg.data.num_workers)
    seconds = time.perf_counter() - start
    rows = [
        Row(
            protocol=protocol.name,
            views=len(protocol.views),
            top1_error=results[protocol.name].error(1),
            top5_error=results[protocol.name].error(5),
            images=len(results[protocol.name]),
            net=net.recipe.name,
            pooling=net.recipe.pooling,
            levels=" ".join(map(str, net.pool.levels)),
            sizes=training_sizes(checkpoint),
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            data=cfg.data.kind,
            checkpoint=str(cfg.ckpt),
            checkpoint_sha256=file_sha256(cfg.ckpt),
            precision=str(cfg.trainer.precision),
            seconds=round(seconds, 3),
            images_per_second=round(len(files) / seconds, 3),
            spp_cls=version("spp_cls"),
            torch=torch.__version__,
            python=platform.python_version(),
            hardware=hardware(),
        )
        for protocol in protocols
    ]
    if fabric.is_global_zero:
        header = ("protocol", "views", "top-1 error %", "top-5 error %", "images")
        print(terminal_table(header, [(r.protocol, r.views, r.top1_error, r.top5_error, r.images) for r in rows]))
        if cfg.out:
            append_csv(rows, cfg.out)
        if cfg.predictions:
            write_csv(results, files, cfg.predictions)
        print(json.dumps({"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    command.run(test, CONFIG_DIR, "eval")
