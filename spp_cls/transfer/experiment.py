"""From features to metrics: a linear SVM for each class, trained and tested for every feature and draw."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray
from tqdm import tqdm

from spp_cls.cli.collectives import all_gather
from spp_cls.transfer.datasets import Indices, Split, TransferData
from spp_cls.transfer.features.layers import Feature
from spp_cls.transfer.features.store import FeatureStore
from spp_cls.transfer.metrics import (
    compute_11_point_precision,
    compute_average_precision,
    compute_class_accuracies,
)
from spp_cls.transfer.svm import LinearClassifiers, Solver, fit_classifiers, normalise_lengths

# Test images that are scored at once.
_CHUNK = 1024

Scores = NDArray[np.float32]


class Metrics(NamedTuple):
    """The metrics of one test, in percent, each first of every class.

    With one label an image `main` is the accuracy on each class's images, and `overall` that on all images; with
    several labels `main` is the average precision of 11 points, and `exact` the exact one.
    """

    main: NDArray[np.float64]
    exact: NDArray[np.float64] | None
    overall: float | None

    @property
    def mean(self) -> float:
        """The mean of `main` over the classes that have one."""
        return float(np.nanmean(self.main))


class DrawResult(NamedTuple):
    """A feature tested on a draw: the cost C and what it reached on the validation part, metrics, scores if asked."""

    feature: Feature
    draw: int
    cost: float
    validation: float | None
    metrics: Metrics
    scores: Scores | None


def train_and_test(
    data: TransferData,
    store: FeatureStore,
    features: Sequence[Feature],
    costs: Sequence[float] = (1.0,),
    solver: Solver = "libsvm",
    validate: bool = False,
    keep_scores: bool = False,
    fabric: Fabric | None = None,
    progress: bool = True,
) -> list[DrawResult]:
    """Train and test on each feature and draw; return the results in the order of features, then draws.

    With several costs, or `validate`, each cost is tried on a part of the training images; the best one, of equals the
    first, then trains on all of them. The test images take no part in it. The processes of a fabric share the work,
    and each gets all results.
    """
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    tasks = [(feature, draw) for feature in features for draw in range(len(data.splits))]
    local = tasks[rank::world_size]
    bar = tqdm(
        local, unit=" fits", desc="Training", disable=not progress or rank > 0, dynamic_ncols=True, file=sys.stdout
    )
    results: list[DrawResult] = []
    for feature, draw in bar:
        split, rows = data.splits[draw], store.read(feature)
        cost, reached = costs[0], None
        if validate or len(costs) > 1:
            cost, reached = _choose_cost(data, rows, split, costs, solver)
        (classifiers,) = _fit(data, rows, split.train, [cost], solver)
        scores = _score(classifiers, rows, split.test)
        metrics = measure(data, scores, split.test)
        results.append(DrawResult(feature, draw, cost, reached, metrics, scores if keep_scores else None))
    shards = all_gather(results) if world_size > 1 else [results]
    order = {task: number for number, task in enumerate(tasks)}
    joined = [result for shard in shards for result in shard]
    return sorted(joined, key=lambda result: order[result.feature, result.draw])


def _choose_cost(
    data: TransferData, rows: NDArray[np.float32], split: Split, costs: Sequence[float], solver: Solver
) -> tuple[float, float]:
    reached = [
        measure(data, _score(classifiers, rows, split.validation), split.validation).mean
        for classifiers in _fit(data, rows, split.fit, costs, solver)
    ]
    best = int(np.argmax(reached))
    return costs[best], reached[best]


def _fit(
    data: TransferData, rows: NDArray[np.float32], indices: Indices, costs: Sequence[float], solver: Solver
) -> list[LinearClassifiers]:
    return fit_classifiers(normalise_lengths(rows[indices]), data.targets[indices], costs, solver)


def _score(classifiers: LinearClassifiers, rows: NDArray[np.float32], indices: Indices) -> Scores:
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    return np.concatenate([classifiers.score(normalise_lengths(rows[chunk])) for chunk in chunks])


def measure(data: TransferData, scores: Scores, indices: Indices) -> Metrics:
    """Compute the metrics of the scores, N x classes, of N images of a data set."""
    targets = data.targets[indices]
    if data.has_several_labels:
        columns = list(zip(scores.T, targets.T, strict=True))
        main = np.array([compute_11_point_precision(*column) for column in columns])
        exact = np.array([compute_average_precision(*column) for column in columns])
        return Metrics(100 * main, 100 * exact, None)
    labels = targets.argmax(1)
    overall = 100 * float(np.mean(scores.argmax(1) == labels))
    return Metrics(100 * compute_class_accuracies(scores, labels), None, overall)


def choose_sides(results: Sequence[DrawResult]) -> list[DrawResult]:
    """Return for each layer, view and draw the result of the side that was best on the validation part."""
    groups: dict[tuple[str, str, int], list[DrawResult]] = {}
    for result in results:
        groups.setdefault((result.feature.layer, result.feature.view, result.draw), []).append(result)
    return [max(members, key=lambda each: each.validation or 0.0) for members in groups.values()]
