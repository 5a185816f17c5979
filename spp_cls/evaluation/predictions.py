"""What a protocol predicts for each image, from which its errors are counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spp_cls.data.sources import ImageSource
from spp_cls.evaluation.csv_files import write_lines
from spp_cls.models.head import find_best_classes

# The columns that a file of predictions begins with.
COLUMNS = ("protocol", "image", "label")


@dataclass(frozen=True)
class Predictions:
    """The best classes of M images, best first, with their scores.

    `indices` (M) are the images' indices in their source, `labels` (M) their classes, `classes` and `scores`
    (M x 5, or M x classes where there are fewer) the predictions.
    """

    indices: Tensor
    labels: Tensor
    classes: Tensor
    scores: Tensor

    @staticmethod
    def from_scores(scores: Tensor, labels: Tensor, indices: Tensor) -> "Predictions":
        """Keep the five best of M x classes scores, on the CPU."""
        values, classes = find_best_classes(scores)
        return Predictions(indices, labels, classes.cpu(), values.float().cpu())

    @staticmethod
    def join(batches: Sequence["Predictions"]) -> "Predictions":
        """Join the predictions of batches, in the order of the images' indices."""
        columns = [torch.cat(column) for column in zip(*map(_list_columns, batches), strict=True)]
        order = columns[0].argsort()
        return Predictions(*(column[order] for column in columns))

    def __len__(self) -> int:
        return len(self.labels)

    def count_correct(self, k: int) -> int:
        """Count the images whose label is among the `k` best classes."""
        return int((self.classes[:, :k] == self.labels.view(-1, 1)).any(1).sum())

    def error(self, k: int) -> float:
        """Compute the top-k error in percent."""
        return 100 * (len(self) - self.count_correct(k)) / len(self)

    def agreement_with(self, other: "Predictions") -> float:
        """Compute the percentage of images whose best class is that of other predictions of the same images."""
        return 100 * int((self.classes[:, 0] == other.classes[:, 0]).sum()) / len(self)


def _list_columns(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return predictions.indices, predictions.labels, predictions.classes, predictions.scores


def write_csv(predictions: Mapping[str, Predictions], source: ImageSource, path: str | Path) -> None:
    """Write the predictions of some protocols: protocol, image, label, class1..class5, score1..score5.

    Labels and classes are names. Where there are fewer than five classes, there are fewer columns. A file name that is
    not UTF-8 is written with the bytes that it has on the disk.

    Raises:
        UserError: if the file cannot be written.
    """
    names = source.class_names
    ranks = range(1, 1 + min(5, len(names)))
    header = [*COLUMNS, *(f"class{rank}" for rank in ranks), *(f"score{rank}" for rank in ranks)]
    write_lines(path, header, _list_lines(predictions, source), "predictions")


def _list_lines(predictions: Mapping[str, Predictions], source: ImageSource) -> Iterator[list[str]]:
    names = source.class_names
    for protocol, found in predictions.items():
        columns = (column.tolist() for column in _list_columns(found))
        for index, label, classes, scores in zip(*columns, strict=True):
            cells = [*(names[number] for number in classes), *(f"{score:.6g}" for score in scores)]
            yield [protocol, source.name(index), names[label], *cells]
