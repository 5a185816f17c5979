"""Text files: the configuration of a run, results and metrics."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from spp_cls.data.datamodule import NUM_IMAGES_KEY, ImageNetDataModule
from spp_cls.evaluation.rows import read_csv
from spp_cls.evaluation.tables import build_measured_table, build_paper_tables, read_results
from spp_cls.models.checkpoint import load_checkpoint, load_net
from spp_cls.training.loggers import CSVLogger
from spp_cls.training.run.folder import RunFolder
from tests.fuzz.damage import DEEP, Files, Random, damage_bytes, damage_plain

# config.yaml of a run.


def damage_config(files: Files, random: Random, code: str) -> Files:
    files = dict(files)
    text = files["config.yaml"]
    if random.random() < 0.35:
        files["config.yaml"] = damage_bytes(text, random)
        return files
    evil = f"!!python/object/apply:eval [{json.dumps(code)}]"
    bomb = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
    values = damage_plain(yaml.safe_load(text), random, code)
    changed = yaml.safe_dump(values, allow_unicode=True).replace(yaml.safe_dump(DEEP).strip(), "[" * 3000 + "]" * 3000)
    match int(random.integers(8)):
        case 0:
            changed = changed.replace("seed: 0", f"seed: {evil}")
        case 1:
            changed += f"\n{bomb}\noptimizer: *a39\n"
        case 2:
            changed = changed.replace("seed: 0", f"seed: ${{oc.env:HOME}}{code}")
    files["config.yaml"] = changed.encode("utf-8", "surrogatepass")
    return files


def open_config(folder: Path) -> str:
    cfg = OmegaConf.create(yaml.safe_load((folder / "as_started.yaml").read_bytes()))
    net = load_net(folder / "last.ckpt")
    images = load_checkpoint(folder / "last.ckpt").get(ImageNetDataModule.__qualname__, {}).get(NUM_IMAGES_KEY, 1)
    assert RunFolder(folder).find_checkpoint(net.config, cfg, images) == folder / "last.ckpt"
    return "resumes"


# Results.


def damage_results(files: Files, random: Random, code: str) -> Files:
    name = sorted(files)[int(random.integers(len(files)))]
    data = files[name]
    if random.random() < 0.4:
        return {**files, name: damage_bytes(data, random)}
    rows = list(csv.reader(io.StringIO(data.decode())))
    changed = damage_plain(rows, random, code)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([each if isinstance(each, list) else [each] for each in changed])
    return {**files, name: buffer.getvalue().encode("utf-8", "surrogatepass")}


def open_results(folder: Path) -> Any:
    paper, ours = read_results(folder)
    return build_paper_tables(paper, ours), build_measured_table(paper, ours), read_csv(folder / "results.csv")


def is_right_results(found: Any) -> bool:
    return len(found) == 3


def damage_metrics(files: Files, random: Random, code: str) -> Files:
    return {"metrics.csv": damage_results({"results.csv": files["metrics.csv"]}, random, code)["results.csv"]}


def open_metrics(folder: Path) -> list[dict[str, Any]]:
    logger = CSVLogger(folder / "metrics.csv", resume_step=20)
    logger.log_metrics({"loss": 2.0}, 20)
    logger.save()
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_right_metrics(found: Any) -> bool:
    """What was there stays, as far as it has a step, and the new row is the last."""
    return found[-1]["step"] == "20" and found[-1]["loss"] == "2.0" and all(int(row["step"]) <= 20 for row in found)
