"""Steps of fine-tuning and part segmentation: one graph, no waiting, the same in parts; a turn is a rotation."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch

from jointmae.config import DownstreamConfig, FinetuneConfig, PartSegConfig
from jointmae.data.augment import augment
from jointmae.downstream.classification import Classification
from jointmae.downstream.segmentation import Segmentation
from jointmae.model import Classifier, Segmenter
from jointmae.model.point_encoder import PointEncoder
from jointmae.objective import Objective
from jointmae.step import Step
from tests.models import furniture, micro_config
from tests.test_step import NoWaiting

IDS = torch.arange(8)


def make_step(kind: str, device: str | torch.device = "cpu", **changes: Any) -> Step:
    clouds = furniture().to(device)
    torch.manual_seed(0)
    encoder = PointEncoder.of(micro_config())
    config: DownstreamConfig = FinetuneConfig() if kind == "classification" else PartSegConfig()
    config = dataclasses.replace(config, **{"compile": "off", "augment": "scale+shift+rotate", **changes})
    if kind == "classification":
        objective: Objective = Classification(Classifier(encoder, clouds.classes).to(device).train(), config)
    else:
        parts = (clouds.points[..., 2] > 0).to(torch.uint8)
        clouds = dataclasses.replace(clouds, parts=parts, part_names=("low", "high"))
        model = Segmenter(encoder, clouds.classes, clouds.part_names).to(device)
        objective = Segmentation(model.train(), config)
    return Step(objective, clouds)


kinds = pytest.mark.parametrize("kind", ["classification", "segmentation"])


@kinds
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fullgraph(kind, precision, monkeypatch):
    """From points to losses with no break, and the same as eager; learning rates and epochs need no new graph."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled, eager = (make_step(kind, compile=mode, precision=precision) for mode in ("on", "off"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            one, other = (s.run(IDS + number, number, 1e-3 * (number + 1)) for s in (compiled, eager))
            tolerance = 1e-4 if precision == "fp32" else 2e-2  # a logit's last bit decides which class is the largest
            torch.testing.assert_close(one[[0, 2]], other[[0, 2]], rtol=tolerance, atol=tolerance)


@kinds
def test_no_step_waits_for_the_device(kind):
    step = make_step(kind)
    with NoWaiting():
        for number in range(2):
            step.run(IDS, number, 1e-3)


@kinds
def test_a_batch_in_half_precision_learns(kind):
    """The loss of the same batch falls, with matrix work in bfloat16 and in float32."""
    for precision in ("fp32", "bf16"):
        step = make_step(kind, precision=precision, augment="none", lr=1e-2)
        found = [float(step.run(IDS, number, 1e-2)[0]) for number in range(8)]
        assert found[-1] < 0.9 * found[0] and all(map(math.isfinite, found)), found


@pytest.mark.parametrize("epoch", [0, 7])
def test_a_turn_is_a_rotation_about_the_up_axis(epoch):
    clouds = furniture()
    points, up = clouds.points[IDS].double(), clouds.up[IDS].double()
    turned = augment("rotate", points, up, IDS, epoch, seed=0, normalize=False)
    heights = [torch.linalg.vecdot(p, up[:, None]) for p in (points, turned)]
    torch.testing.assert_close(*heights)
    distances = [torch.cdist(p[:, :50], p[:, :50]) for p in (points, turned)]
    torch.testing.assert_close(*distances)
    assert torch.equal(turned, augment("rotate", points, up, IDS, epoch, seed=0, normalize=False))
    axes = torch.eye(3).double()
    frame = torch.cat([up[:1, None], axes[None]], 1)  # no mirror image: the axes stay right-handed
    frame = augment("rotate", frame, up[:1], IDS[:1], epoch, seed=0, normalize=False)
    torch.testing.assert_close(torch.linalg.det(frame[0, 1:]), torch.ones((), dtype=torch.float64))


def test_turns_differ_between_clouds_and_epochs_and_cover_the_circle():
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(1000, 3)
    point = torch.tensor([[[1.0, 0.0, 0.0]]]).expand(1000, 1, 3)
    ids = torch.arange(1000)
    x, y, _ = augment("rotate", point, up, ids, 0, seed=0, normalize=False)[:, 0].unbind(1)
    angles = torch.atan2(y, x)
    counts = torch.histc(angles, 8, -math.pi, math.pi)
    assert counts.min() > 90 and counts.max() < 160
    later = augment("rotate", point, up, ids, 1, seed=0, normalize=False)[:, 0]
    assert (torch.atan2(later[:, 1], later[:, 0]) - angles).abs().median() > 0.5


def test_none_and_both():
    clouds = furniture()
    points, up = clouds.points[IDS], clouds.up[IDS]
    assert torch.equal(augment("none", points, up, IDS, 0, seed=0, normalize=False), points)
    both = augment("scale+shift+rotate", points, up, IDS, 0, seed=0)
    turned = augment("rotate", points, up, IDS, 0, seed=0, normalize=False)
    torch.testing.assert_close(both, augment("scale+shift", turned, up, IDS, 0, seed=0))
