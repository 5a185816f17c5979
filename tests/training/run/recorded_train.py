"""train.py, which writes down the images of every step of each process; rank 0 can be told to stop itself.

RECORD is the folder of the files, two a process: the indices of the images, and what the network sees of them. STRIKE
is CALL:SIGNAL or CALL:SIGNAL:FUNCTION: at which call of training_step, or of validation_step, which signal.
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

REPOSITORY = Path(__file__).parents[3]
step, validation_step = LitClassifier.training_step, LitClassifier.validation_step
call, number, *places = os.environ.get("STRIKE", "0:0").split(":")
place = places[0] if places else "training_step"
calls = 0


def strike(module: LitClassifier, function: str) -> None:
    """Send rank 0 the signal, if it is time to."""
    global calls  # noqa: PLW0603
    calls += function == place
    if function == place and calls == int(call) and module.global_rank == 0:
        os.kill(os.getpid(), int(number))


def digest_batch(batch: Batch) -> list[str]:
    """Return a digest of each image of a finished batch, with its label and its target."""
    targets = torch.zeros(len(batch.labels)) if batch.targets is None else batch.targets
    return [
        hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
        for parts in zip(batch.images, batch.labels, targets, strict=True)
    ]


def recorded(self: LitClassifier, batch: Batch, batch_idx: int) -> Any:
    with (Path(os.environ["RECORD"]) / f"{self.global_rank}.jsonl").open("a") as file:
        file.write(json.dumps(batch.indices.tolist()) + "\n")
    with (Path(os.environ["RECORD"]) / f"{self.global_rank}.digests").open("a") as file:
        file.write(json.dumps(digest_batch(batch)) + "\n")
    strike(self, "training_step")
    return step(self, batch, batch_idx)


def struck(self: LitClassifier, batch: Batch, batch_idx: int) -> None:
    strike(self, "validation_step")
    validation_step(self, batch, batch_idx)


if __name__ == "__main__":
    LitClassifier.training_step = recorded  # type: ignore[method-assign]
    LitClassifier.validation_step = struck  # type: ignore[method-assign]
    run(runpy.run_path(str(REPOSITORY / "train.py"))["train"], REPOSITORY / "conf", "train")
