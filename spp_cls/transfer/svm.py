"""Linear support vector machines, one a class against the rest, by scikit-learn: LIBSVM, the paper's, or liblinear."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spp_cls.cli.errors import UserError
from spp_cls.transfer.datasets import find_one_sided_class

Solver = Literal["libsvm", "liblinear"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LinearClassifiers:
    """A linear function for each class: classes x length weights, and biases."""

    weights: Floats
    biases: Floats

    def score(self, features: Floats) -> Floats:
        """Return the N x classes scores of N x length features."""
        return (multiply(features, self.weights) + self.biases).astype(np.float32)


def check_scikit_learn() -> None:
    """Raise UserError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("transfer needs scikit-learn; install it with: pip install 'spp_cls[transfer]'") from error


def normalise_lengths(features: NDArray[Any]) -> Floats:
    """Divide each row by its Euclidean length; rows of zeros stay."""
    rows: Floats = np.asarray(features, np.float32)
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return rows / lengths


def multiply(a: Floats, b: Floats) -> Floats:
    """Return the products of the rows of a with the rows of b; by torch, whose threads the user has set."""
    return (torch.from_numpy(a) @ torch.from_numpy(b).T).numpy()


def check_memory(images: int, solver: Solver) -> None:
    """Check, before the features are computed, that libsvm's products of so many training images fit into memory.

    Raises:
        UserError: if they do not.
    """
    # float32, and float64 for libsvm.
    needed, there = 12 * images**2, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if solver == "libsvm" and needed > there:
        raise UserError(
            f"svm=libsvm takes {needed / 1e9:,.0f} GB of memory for {images:,} training images, and this machine has "
            f"{there / 1e9:,.0f} GB; set svm=liblinear"
        )


def fit_classifiers(
    features: Floats, targets: NDArray[np.int8], costs: Sequence[float], solver: Solver = "libsvm"
) -> list[LinearClassifiers]:
    """Fit a linear SVM with hinge loss for each class (section 3.2), for each cost C.

    `features` are N x length, `targets` N x classes: 1, -1, and 0 where an image is left out. libsvm sees the products
    of all pairs of images only, which takes N * N * 12 bytes and a time that hardly depends on the length; liblinear is
    for more images than that, and regularises the bias too.

    Raises:
        UserError: if a class has no image, or no other image, to train on.
    """
    if (one_sided := find_one_sided_class(targets)) is not None:
        raise UserError(f"class {one_sided} needs images of its own and of others to train on; there are only either")
    products = multiply(features, features).astype(np.float64) if solver == "libsvm" else None

    def fit(task: tuple[float, int]) -> tuple[Floats, float]:
        cost, number = task
        target = targets[:, number]
        if products is None:
            return _fit_liblinear(features, target, cost)
        return _fit_libsvm(features, products, target, cost)

    tasks = [(cost, number) for cost in costs for number in range(targets.shape[1])]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        fitted = list(pool.map(fit, tasks))
    found: list[LinearClassifiers] = []
    for start in range(0, len(fitted), targets.shape[1]):
        weights, biases = zip(*fitted[start : start + targets.shape[1]], strict=True)
        found.append(LinearClassifiers(np.stack(weights), np.array(biases, np.float32)))
    return found


def _fit_libsvm(
    features: Floats, products: NDArray[np.float64], target: NDArray[np.int8], cost: float
) -> tuple[Floats, float]:
    from sklearn.svm import SVC

    counted = np.flatnonzero(target)
    if len(counted) < len(target):
        products = products[np.ix_(counted, counted)]
    machine = SVC(kernel="precomputed", C=cost).fit(products, target[counted])
    factors = torch.from_numpy(machine.dual_coef_[0].astype(np.float32))
    weights: Floats = (factors @ torch.from_numpy(features[counted[machine.support_]])).numpy()
    return weights, machine.intercept_[0]


def _fit_liblinear(features: Floats, target: NDArray[np.int8], cost: float) -> tuple[Floats, float]:
    from sklearn.svm import LinearSVC

    counted = target != 0
    machine = LinearSVC(C=cost, loss="hinge", random_state=0, max_iter=10_000).fit(features[counted], target[counted])
    weights: Floats = machine.coef_[0].astype(np.float32)
    return weights, machine.intercept_[0]
