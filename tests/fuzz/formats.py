"""Every kind of file that is opened: how it is damaged and opened, and whole ones."""

import csv
import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from PIL import Image

import spp_cls
from spp_cls.data.sources import open_source
from spp_cls.data.sources.packing import PackSettings, pack
from spp_cls.evaluation.rows import Row
from spp_cls.export.formats import export_net
from tests.conftest import REPOSITORY
from tests.fuzz.damage import Format, to_json
from tests.fuzz.data_sets import (
    damage_labels,
    damage_list,
    damage_pack,
    damage_parquet,
    damage_unfinished,
    is_right_labels,
    is_right_pack,
    is_right_parquet,
    open_labels,
    open_list,
    open_pack,
    open_parquet,
    open_unfinished,
)
from tests.fuzz.networks import (
    damage_checkpoint,
    damage_folder,
    damage_onnx,
    damage_pt2,
    is_an_answer,
    is_right_checkpoint,
    open_checkpoint,
    open_folder,
    open_onnx,
    open_pt2,
    save,
)
from tests.fuzz.texts import (
    damage_config,
    damage_metrics,
    damage_results,
    is_right_metrics,
    is_right_results,
    open_config,
    open_metrics,
    open_results,
)

FORMATS = {
    "checkpoint": Format(damage_checkpoint, open_checkpoint, is_right_checkpoint),
    "folder": Format(damage_folder, open_folder, is_an_answer),
    "onnx": Format(damage_onnx, open_onnx, is_an_answer),
    "pt2": Format(damage_pt2, open_pt2, is_an_answer),
    "pack": Format(damage_pack, open_pack, is_right_pack),
    "unfinished": Format(damage_unfinished, open_unfinished),
    "parquet": Format(damage_parquet, open_parquet, is_right_parquet),
    "config": Format(damage_config, open_config),
    "results": Format(damage_results, open_results, is_right_results),
    "metrics": Format(damage_metrics, open_metrics, is_right_metrics),
    "list": Format(damage_list, open_list),
    "labels": Format(damage_labels, open_labels, is_right_labels),
}


def write_whole_files(folder: Path) -> None:
    """Write the whole files of each kind into a folder of its name."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 0.02, "hidden": (4,), "levels": (2, 1), "num_classes": 3, "input_size": 64}
    net = spp_cls.build_net("zf5", init="kaiming", std=(57.6,) * 3, class_names=("a", "b", "c"), **options)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    content = {
        "net_config": asdict(net.config), "state_dict": weights, "epoch": 3, "global_step": 12,
        "loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": [],
        "validation_errors": [], "train_counts": [],
        "datamodule_hyper_parameters": {"sizes": [64, 56]},
    }  # fmt: skip
    for kind in FORMATS:
        (folder / kind).mkdir(parents=True)
    (folder / "checkpoint/best.ckpt").write_bytes(save(content))
    export_net(folder / "checkpoint/best.ckpt", ["safetensors", "onnx", "torch"], folder / "exported")
    for kind, names in (
        ("folder", ("config.json", "model.safetensors")),
        ("onnx", ("model.onnx",)),
        ("pt2", ("model.pt2",)),
    ):
        for name in names:
            (folder / kind / name).write_bytes((folder / "exported" / name).read_bytes())
    random = np.random.default_rng(0)
    images = {}
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b", "c")):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (9, 8 + number, 3)).astype(np.uint8)).save(buffer, "JPEG")
            images[f"{split}/{name}/1.jpg"] = buffer.getvalue()
    for root in ("unfinished/images", "list/images"):
        for name, data in images.items():
            (folder / root / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / root / name).write_bytes(data)
    sources = {split: open_source("imagefolder", folder / "unfinished/images", split) for split in ("train", "val")}  # type: ignore[arg-type]
    manifest = pack(sources, folder / "pack", PackSettings(), 1, "stop")  # type: ignore[arg-type]
    # As a packing leaves it that was stopped before its last file: notes of the others.
    splits = manifest.pop("splits")
    note = splits["train"]["files"][0]
    (folder / "unfinished/packed").mkdir()
    for name, data in (
        ("unfinished.json", to_json(manifest)),
        (f"{note['name']}.json", to_json({**note, "bad": []})),
        (note["name"], (folder / "pack" / note["name"]).read_bytes()),
    ):
        (folder / "unfinished/packed" / name).write_bytes(data)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": data, "path": name} for name, data in images.items() if name.startswith("train")]
    noted = {"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}
    table = pa.table({"image": pa.array(cells, kind), "label": [0, 1, 2]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    pq.write_table(table, folder / "parquet/train-0.parquet", row_group_size=2)
    cfg = {
        "seed": 0, "sizes": [64], "ema_decay": None, "data": {"kind": "demo", "batch_size": 8},
        "resume": True, "overwrite": False,
        "trainer": {
            "max_epochs": 100, "gradient_clip_val": None, "accumulate_grad_batches": 1, "limit_train_batches": None,
        },
        "optimizer": {"kind": "sgd", "lr": 0.01}, "schedule": {"kind": "plateau"}, "augmentation": {"kind": "paper"},
    }  # fmt: skip
    for name in ("config.yaml", "as_started.yaml"):
        (folder / "config" / name).write_text(OmegaConf.to_yaml(OmegaConf.create(cfg)))
    (folder / "config/last.ckpt").write_bytes(save(content))
    numbers = (int, float, int | None, float | None)
    cells = [str(number) if hint in numbers else "x" for number, hint in enumerate(get_type_hints(Row).values())]
    with (folder / "results/results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([get_type_hints(Row), cells, cells])
    paper = (REPOSITORY / "results/paper.csv").read_bytes().splitlines(keepends=True)
    (folder / "results/paper.csv").write_bytes(b"".join(paper[:5]))
    (folder / "metrics/metrics.csv").write_text("step,epoch,loss\n5,0,3.0\n10,0,2.5\n15,1,\n")
    os.environ["XDG_CACHE_HOME"] = str(folder / "list/cache")
    open_list(folder / "list")
    for root in ("kaggle/ILSVRC/Data/CLS-LOC/val", "devkit/val", "devkit/ILSVRC2012_devkit_t12/data"):
        (folder / "labels" / root).mkdir(parents=True)
    for number in range(3):
        for root in ("kaggle/ILSVRC/Data/CLS-LOC/val", "devkit/val"):
            (folder / "labels" / root / f"ILSVRC2012_val_{number}.JPEG").write_bytes(images["val/a/1.jpg"])
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_{n},n0{n} 1 2 3 4" for n in range(3))]
    (folder / "labels/kaggle/LOC_val_solution.csv").write_text("\n".join(lines))
    devkit = folder / "labels/devkit/ILSVRC2012_devkit_t12/data"
    (devkit / "map_clsloc.txt").write_text("n03 1 cat\nn01 2 dog\nn02 3 cow\n")
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
