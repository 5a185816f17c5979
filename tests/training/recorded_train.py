"""train.py, which writes down the images of every step of each process; rank 0 can be told to stop itself.

RECORD is the folder of the files, one a process; STRIKE is CALL:SIGNAL.
"""

import json
import os
import runpy
from pathlib import Path
from typing import Any

from spp_cls.cli.command import run
from spp_cls.data.loading.batch import Batch
from spp_cls.training.module import LitClassifier

REPOSITORY = Path(__file__).parent.parent.parent
step = LitClassifier.training_step
call, number = map(int, os.environ.get("STRIKE", "0:0").split(":"))
calls = 0


def recorded(self: LitClassifier, batch: Batch, batch_idx: int) -> Any:
    global calls  # noqa: PLW0603
    calls += 1
    with (Path(os.environ["RECORD"]) / f"{self.global_rank}.jsonl").open("a") as file:
        file.write(json.dumps(batch.indices.tolist()) + "\n")
    if calls == call and self.global_rank == 0:
        os.kill(os.getpid(), number)
    return step(self, batch, batch_idx)


if __name__ == "__main__":
    LitClassifier.training_step = recorded  # type: ignore[method-assign]
    run(runpy.run_path(str(REPOSITORY / "train.py"))["train"], REPOSITORY / "conf", "train")
