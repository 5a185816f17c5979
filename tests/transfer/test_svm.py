"""Linear SVMs against scikit-learn, called directly."""

import numpy as np
import pytest
from sklearn.svm import SVC, LinearSVC

from spp_cls.cli.errors import UserError
from spp_cls.transfer.datasets import make_targets
from spp_cls.transfer.svm import check_memory, fit_classifiers, normalise_lengths

CLASSES = 5


def draw(count: int, seed: int, length: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Features of five classes that overlap, some of them right and some wrong for a linear classifier."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, length))
    labels = np.arange(count) % CLASSES
    features = np.maximum(centres[labels] + 0.23 * length**0.5 * random.normal(size=(count, length)), 0)
    return features.astype(np.float32), labels


def test_products_that_do_not_fit_into_memory() -> None:
    check_memory(10_000_000, "liblinear")
    with pytest.raises(UserError, match="svm=libsvm takes 1,200,000 GB of memory for 10,000,000 training images, and"):
        check_memory(10_000_000, "libsvm")


@pytest.mark.parametrize("length", [60, 400])
def test_libsvm_gives_what_scikit_learn_gives_on_the_features(length: int) -> None:
    """More and fewer values than images: products of pairs stand for both."""
    (train, labels), (test, truth) = draw(100, 0, length), draw(200, 1, length)
    train, test = normalise_lengths(train), normalise_lengths(test)
    (classifiers,) = fit_classifiers(train, make_targets(labels, CLASSES), [1.0])
    expected = np.stack(
        [
            SVC(kernel="linear", C=1.0).fit(train, np.where(labels == c, 1, -1)).decision_function(test)
            for c in range(CLASSES)
        ],
        axis=1,
    )
    found = classifiers.score(test)
    # Both end at LIBSVM's tolerance of 1e-3, on products that differ in the last bits.
    np.testing.assert_allclose(found, expected, atol=2e-3)
    accuracy = np.mean(found.argmax(1) == truth)
    assert accuracy == np.mean(expected.argmax(1) == truth)
    assert 0.4 < accuracy < 0.99


def test_liblinear_gives_what_scikit_learn_gives_for_all_classes_at_once() -> None:
    (train, labels), (test, truth) = draw(100, 0), draw(200, 1)
    (classifiers,) = fit_classifiers(train, make_targets(labels, CLASSES), [1.0], "liblinear")
    machine = LinearSVC(C=1.0, loss="hinge", random_state=0, max_iter=10_000).fit(train, labels)
    assert np.mean(classifiers.score(test).argmax(1) == truth) == machine.score(test, truth)


def test_images_that_do_not_count_are_left_out() -> None:
    train, labels = draw(60, 0)
    targets = make_targets(labels, CLASSES)
    targets[:7, 2] = 0
    for solver in ("libsvm", "liblinear"):
        (found,) = fit_classifiers(train, targets, [1.0], solver)  # type: ignore[arg-type]
        (expected,) = fit_classifiers(train[7:], targets[7:], [1.0], solver)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.weights[2], expected.weights[2], atol=1e-3)
        assert np.abs(found.weights[1] - expected.weights[1]).max() > 1e-2


def test_each_cost_has_its_classifiers() -> None:
    train, labels = draw(60, 0)
    targets = make_targets(labels, CLASSES)
    small, large = fit_classifiers(train, targets, [0.01, 1.0])
    (alone,) = fit_classifiers(train, targets, [0.01])
    np.testing.assert_array_equal(small.weights, alone.weights)
    assert np.linalg.norm(small.weights) < np.linalg.norm(large.weights)


def test_lengths() -> None:
    found = normalise_lengths(np.array([[3, 4], [0, 0], [0.5, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_a_class_without_images() -> None:
    train, labels = draw(20, 0)
    with pytest.raises(UserError, match="class 5 needs images of its own and of others"):
        fit_classifiers(train, make_targets(labels, CLASSES + 1), [1.0])
