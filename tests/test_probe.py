"""The linear probe on label sets at the edge of what can be probed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jointmae.data import PointClouds
from jointmae.probe import POOLINGS, can_probe, linear_probe
from tests.models import furniture, micro_model


def labelled(*labels: int) -> PointClouds:
    return replace(furniture().select(torch.arange(len(labels))), labels=torch.tensor(labels))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [(0, 0, 0, 0, 1, 1, 1, 1), (0, 0, 1, 1, 2, 2, 3, 3), (0, 0, 0, 0, 0, 0, 1, 1)])
def test_classes_smaller_than_five_are_probed_with_fewer_folds(labels: tuple[int, ...]) -> None:
    clouds = labelled(*labels)
    results = linear_probe(micro_model(), clouds, clouds)
    assert [result.pooling for result in results] == list(POOLINGS)
    assert all(result.num_train == len(labels) and 0 <= result.accuracy <= 1 for result in results)


@pytest.mark.parametrize("labels", [(0, 0, 0, 0), (0, 1, 2, 3), (0, 0, 0, 1), (-1, -1, -1, -1)])
def test_label_sets_that_cannot_be_cross_validated_are_refused(labels: tuple[int, ...]) -> None:
    train, test = labelled(*labels), labelled(0, 1)
    assert not can_probe(train, test)
    with pytest.raises(ValueError, match="two classes of at least two train clouds each"):
        linear_probe(micro_model(), train, test)


def test_unlabelled_test_clouds_are_refused() -> None:
    assert not can_probe(labelled(0, 0, 1, 1), labelled(-1, -1))
