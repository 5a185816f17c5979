"""Results as CSV rows: one a feature, with all that is needed to judge it; and files of classes and predictions."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spp_cls.evaluation.csv_files import RowFile, write_lines
from spp_cls.evaluation.rows import find_version
from spp_cls.models.head import find_best_classes
from spp_cls.transfer.datasets import TransferData
from spp_cls.transfer.experiment import DrawResult
from spp_cls.transfer.nets import NetFacts


@dataclass(frozen=True)
class TransferRow(NetFacts):
    """The figures of a feature, in percent; means over draws, and sample deviations where there are several.

    Accuracy is the mean over classes, and that over images; average precision (of 11 points, exact) the mean over
    classes. `side` and C are those of each draw where they differ; with `is_side_chosen` the side is the best on the
    validation part. `by_draw` is the accuracy over classes, or the average precision of 11 points, of each draw.
    `stored_side` is that of SourceIdentity, `costs` are the values of C that were given, `seed` is that of the draws
    and `precision` that of the features; rows of earlier versions have none of them.
    """

    data: str
    stored_side: int | None
    layer: str
    view: str
    side: str
    is_side_chosen: bool
    length: int
    svm: str
    C: str
    costs: str
    draws: int
    seed: int
    train_images: int
    test_images: int
    accuracy: float | None
    accuracy_std: float | None
    accuracy_of_images: float | None
    accuracy_of_images_std: float | None
    map_11: float | None
    map_exact: float | None
    validation: float | None
    by_draw: str
    precision: str
    seconds: float
    spp_cls: str
    torch: str
    python: str
    hardware: str


def make_row(
    data: TransferData, results: Sequence[DrawResult], is_side_chosen: bool, facts: NetFacts, **others: Any
) -> TransferRow:
    """Summarise the results of one layer and view, one a draw.

    `others` are length, svm, costs, seed, precision, seconds and hardware.
    """
    main = [result.metrics.mean for result in results]
    overall = [result.metrics.overall for result in results if result.metrics.overall is not None]
    exact = [float(np.nanmean(each.metrics.exact)) for each in results if each.metrics.exact is not None]
    reached = [result.validation for result in results if result.validation is not None]
    labelled = not data.has_several_labels
    return TransferRow(
        **asdict(facts),
        data=data.name,
        stored_side=data.storage and data.storage.min_side,
        layer=results[0].feature.layer,
        view=results[0].feature.view,
        side=_join([result.feature.side for result in results]),
        is_side_chosen=is_side_chosen,
        C=_join([result.cost for result in results]),
        draws=len(results),
        train_images=len(data.splits[0].train),
        test_images=len(data.splits[0].test),
        accuracy=_mean(main) if labelled else None,
        accuracy_std=_deviation(main) if labelled else None,
        accuracy_of_images=_mean(overall),
        accuracy_of_images_std=_deviation(overall),
        map_11=None if labelled else _mean(main),
        map_exact=_mean(exact),
        validation=_mean(reached),
        by_draw=" ".join(f"{value:.4f}" for value in main),
        spp_cls=find_version(),
        torch=torch.__version__,
        python=platform.python_version(),
        **others,
    )


def _join(values: Sequence[float]) -> str:
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


ROW_FILE = RowFile(TransferRow, "spp_cls.transfer", new_columns=("stored_side", "costs", "seed", "precision"))
append_rows, check_rows, read_rows = ROW_FILE.append, ROW_FILE.check, ROW_FILE.read

# The columns that the other files begin with.
_PLACE = ("layer", "view", "side", "draw")
CLASSES_COLUMNS = (*_PLACE, "class")
PREDICTIONS_COLUMNS = (*_PLACE, "image", "label")


def write_classes(data: TransferData, results: Sequence[DrawResult], path: str | Path) -> None:
    """Write the figures of each class: layer, view, side, draw, class, and accuracy or the average precisions.

    Raises:
        UserError: if the file cannot be written.
    """
    metrics = ("ap_11", "ap_exact") if data.has_several_labels else ("accuracy",)
    write_lines(path, (*CLASSES_COLUMNS, *metrics), _list_class_lines(data, results), "classes")


def _list_class_lines(data: TransferData, results: Sequence[DrawResult]) -> Iterator[tuple[object, ...]]:
    for result in results:
        columns = [result.metrics.main, *([] if result.metrics.exact is None else [result.metrics.exact])]
        for name, *values in zip(data.class_names, *columns, strict=True):
            yield *result.feature, result.draw, name, *(f"{value:.4f}" for value in values)


def write_predictions(data: TransferData, results: Sequence[DrawResult], path: str | Path) -> None:
    """Write the scores of the test images: layer, view, side, draw, image, label, and on.

    With one label an image the five best classes and their scores follow, else the score of every class; an image's
    labels are joined by spaces, those that are difficult in brackets.

    Raises:
        UserError: if the file cannot be written.
    """
    names = data.class_names
    ranks = range(1, 1 + min(5, len(names)))
    best = [*(f"class{rank}" for rank in ranks), *(f"score{rank}" for rank in ranks)]
    header = (*PREDICTIONS_COLUMNS, *(names if data.has_several_labels else best))
    lines = (line for result in results for line in _list_prediction_lines(data, result))
    write_lines(path, header, lines, "predictions")


def _list_prediction_lines(data: TransferData, result: DrawResult) -> Iterator[tuple[object, ...]]:
    assert result.scores is not None
    best, classes = (values.numpy() for values in find_best_classes(torch.from_numpy(result.scores)))
    for row, index in enumerate(data.splits[result.draw].test.tolist()):
        marks = {1: "{}", 0: "({})", -1: ""}
        labels = (marks[value].format(name) for name, value in zip(data.class_names, data.targets[index], strict=True))
        names = [] if data.has_several_labels else [data.class_names[number] for number in classes[row]]
        scores = result.scores[row] if data.has_several_labels else best[row]
        yield (
            *result.feature, result.draw, data.source.name(index), " ".join(filter(None, labels)), *names,
            *(f"{score:.6g}" for score in scores),
        )  # fmt: skip
