"""What a protocol predicts for each image, from which its errors are counted."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spp_cls.data.sources import ImageSource
from spp_cls.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """The best classes of M images, best first, with their scores.

    `indices` (M) are the images' places in their source, `labels` (M) their classes, `classes` and `scores`
    (M x 5, or M x classes where there are fewer) the predictions.
    """

    indices: Tensor
    labels: Tensor
    classes: Tensor
    scores: Tensor

    @staticmethod
    def of(scores: Tensor, labels: Tensor, indices: Tensor) -> "Predictions":
        """Keep the five best of M x classes scores, on the CPU."""
        best = scores.topk(min(5, scores.shape[1]), dim=1)
        return Predictions(indices, labels, best.indices.cpu(), best.values.float().cpu())

    @staticmethod
    def gathered(parts: Sequence["Predictions"], processes: int) -> "Predictions":
        """Join the parts of all processes, in the order of the images. Every process must call it."""
        own = [_joined(parts)] if parts else []
        if processes > 1:
            everyone: list[list[Predictions]] = [[] for _ in range(processes)]
            torch.distributed.all_gather_object(everyone, own)
            own = [part for parts_of_one in everyone for part in parts_of_one]
        together = _joined(own)
        order = together.indices.argsort()
        return Predictions(*(column[order] for column in _columns(together)))

    def __len__(self) -> int:
        return len(self.labels)

    def right(self, k: int) -> int:
        """Images whose class is among the `k` best."""
        return int((self.classes[:, :k] == self.labels.view(-1, 1)).any(1).sum())

    def agreement(self, other: "Predictions") -> float:
        """Share of the images, in percent, whose best class is that of other predictions of the same images."""
        return 100 * int((self.classes[:, 0] == other.classes[:, 0]).sum()) / len(self)

    def error(self, k: int) -> float:
        """Top-k error in percent."""
        return 100 * (len(self) - self.right(k)) / len(self)


def _columns(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return predictions.indices, predictions.labels, predictions.classes, predictions.scores


def _joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(*(torch.cat(column) for column in zip(*map(_columns, parts), strict=True)))


def write_csv(predictions: Mapping[str, Predictions], files: ImageSource, path: str | Path) -> None:
    """Write the predictions of some protocols: protocol, image, label, class1..class5, score1..score5.

    Labels and classes are names. Where there are fewer than five classes, there are fewer columns.

    Raises:
        UserError: the file cannot be written.
    """
    names = files.class_names
    best = range(1, 1 + min(5, len(names)))
    header = ["protocol", "image", "label", *(f"class{i}" for i in best), *(f"score{i}" for i in best)]
    try:
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for protocol, found in predictions.items():
                columns = (column.tolist() for column in _columns(found))
                for index, label, classes, scores in zip(*columns, strict=True):
                    shown = [f"{score:.6g}" for score in scores]
                    writer.writerow([protocol, files.name(index), names[label], *(names[c] for c in classes), *shown])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with predictions=PATH") from error
