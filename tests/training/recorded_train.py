"""train.py, which writes down the images of every step of each process; rank 0 can be told to stop itself.

RECORD is the folder of the files, two a process: the indices of the images, and what the network sees of them. STRIKE
is CALL:SIGNAL.
"""

import hashlib
import json
import os
import runpy
from pathlib import Path
from typing import Any

import torch

from spp_cls.cli.command import run
from spp_cls.data.loading.batch import Batch
from spp_cls.training.module import LitClassifier

REPOSITORY = Path(__file__).parent.parent.parent
step = LitClassifier.training_step
call, number = map(int, os.environ.get("STRIKE", "0:0").split(":"))
calls = 0


def digest_batch(batch: Batch) -> list[str]:
    """Return a digest of each image of a finished batch, with its label and its target."""
    targets = torch.zeros(len(batch.labels)) if batch.targets is None else batch.targets
    return [
        hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
        for parts in zip(batch.images, batch.labels, targets, strict=True)
    ]


def recorded(self: LitClassifier, batch: Batch, batch_idx: int) -> Any:
    global calls  # noqa: PLW0603
    calls += 1
    with (Path(os.environ["RECORD"]) / f"{self.global_rank}.jsonl").open("a") as file:
        file.write(json.dumps(batch.indices.tolist()) + "\n")
    with (Path(os.environ["RECORD"]) / f"{self.global_rank}.digests").open("a") as file:
        file.write(json.dumps(digest_batch(batch)) + "\n")
    if calls == call and self.global_rank == 0:
        os.kill(os.getpid(), number)
    return step(self, batch, batch_idx)


if __name__ == "__main__":
    LitClassifier.training_step = recorded  # type: ignore[method-assign]
    run(runpy.run_path(str(REPOSITORY / "train.py"))["train"], REPOSITORY / "conf", "train")
