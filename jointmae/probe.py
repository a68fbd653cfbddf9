"""The linear probe: how well a linear SVM on frozen features tells classes apart. S clouds, D features.

Features are neither scaled nor centred; C is chosen by 5-fold cross-validation on the training split (fewer folds where
classes are smaller than that); the test split is read once for each pooling. Always quote the untrained encoder beside
a trained one: it is a high floor.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from jointmae.data import PointClouds
from jointmae.errors import NonFiniteError
from jointmae.model import JointMAE

POOLINGS = ("mean", "max", "mean+max")
C_GRID = tuple(10.0**exponent for exponent in range(-3, 4))
ENOUGH_LABELS = "labelled test clouds, and two classes of at least two train clouds each"
MAX_ITERATIONS = (
    200_000  # of one pair of classes; encoders' features need some 100,000 at the largest C, noise has no end
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracies (fractions) of one pooling."""

    pooling: str
    accuracy: float  # at the cross-validated C
    accuracy_c001: float  # at C = 0.01, a value that the family likes
    accuracy_cv: float  # by cross-validation on train, at that C: what choices are made by
    C: float
    num_train: int
    num_test: int


@torch.no_grad()
def pooled_features(model: JointMAE, clouds: PointClouds, batch_size: int = 64) -> Array:
    """Mean and maximum of the tokens of each cloud's first points, joined: [S, 2 C] float64."""
    model.eval()
    device = model.modality_3d.device
    points = clouds.first(model.config.num_points).points
    chunks = [model.encode(chunk.to(device)).pooled.float().cpu() for chunk in points.split(batch_size)]
    return torch.cat(chunks).double().numpy()


def linear_probe(model: JointMAE, train: PointClouds, test: PointClouds) -> list[ProbeResult]:
    """One result for each of `POOLINGS`.

    Raises ValueError unless `can_probe`, NonFiniteError where the encoder's weights have diverged.
    """
    if not can_probe(train, test):
        raise ValueError(f"linear_probe: wanted {ENOUGH_LABELS}")
    train, test = train.labelled(), test.labelled()
    x_train, x_test = pooled_features(model, train), pooled_features(model, test)
    if not (np.isfinite(x_train).all() and np.isfinite(x_test).all()):
        raise NonFiniteError("the encoder's features are not finite: take an earlier checkpoint, or train again")
    y_train, y_test = train.labels.cpu().numpy(), test.labels.cpu().numpy()
    width = model.config.embed_dim
    columns = {"mean": slice(0, width), "max": slice(width, None), "mean+max": slice(None)}
    return [
        _fit(pooling, x_train[:, columns[pooling]], y_train, x_test[:, columns[pooling]], y_test)
        for pooling in POOLINGS
    ]


def can_probe(train: PointClouds, test: PointClouds) -> bool:
    """Whether there are `ENOUGH_LABELS` to train on, to cross-validate with and to test on."""
    return _num_folds(train.labelled().labels.cpu().numpy()) >= 2 and len(test.labelled()) > 0


def _num_folds(labels: NDArray[np.int64]) -> int:
    """5, or fewer so that no fold's training part is left with a single class; below 2 if even that cannot be."""
    sizes = sorted(np.unique(labels, return_counts=True)[1].tolist(), reverse=True)
    return min(5, sizes[1]) if len(sizes) >= 2 else 0


def _fit(
    pooling: str, x_train: Array, y_train: NDArray[np.int64], x_test: Array, y_test: NDArray[np.int64]
) -> ProbeResult:
    # The Gram matrix is computed once instead of by every one of the 35 fits; the solver and its optimum are the same.
    gram_train, gram_test = x_train @ x_train.T, x_test @ x_train.T  # [S, S], [S_test, S]
    folds = StratifiedKFold(_num_folds(y_train), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # small classes are in few folds
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # said below, where it matters
        search = GridSearchCV(SVC(kernel="precomputed", max_iter=MAX_ITERATIONS), {"C": C_GRID}, cv=folds)
        search.fit(gram_train, y_train)
        fixed = SVC(kernel="precomputed", C=0.01).fit(gram_train, y_train)
    if search.best_estimator_.n_iter_.max() >= MAX_ITERATIONS:
        said = (
            f"the SVM on {pooling} features at C = {search.best_params_['C']:g} stopped after {MAX_ITERATIONS:,} steps"
        )
        warnings.warn(f"{said}: its accuracy is not that of the optimum", stacklevel=3)
    return ProbeResult(
        pooling,
        accuracy=float(search.score(gram_test, y_test)),
        accuracy_c001=float(fixed.score(gram_test, y_test)),
        accuracy_cv=float(search.best_score_),
        C=float(search.best_params_["C"]),
        num_train=len(y_train),
        num_test=len(y_test),
    )


def table(results: list[ProbeResult]) -> str:
    """The results as aligned text."""
    lines = ["pooling    accuracy   at C = 0.01   C by 5-fold CV"]
    lines += [f"{r.pooling:10s} {r.accuracy:8.1%} {r.accuracy_c001:13.1%}   {r.C:g}" for r in results]
    return "\n".join(lines)
