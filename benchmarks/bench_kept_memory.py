"""Large results in memory that earlier ones gave back, against the same calls with PyTorch's fresh memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmarks.bench_project_points import _scene
from benchmarks.timing import rotated
from jointmae import ops
from jointmae.ops import native


def _z_buffer(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor) -> Tensor:
    return ops.project_points(points, world_to_cam, intrinsics, (224, 224), 0).depth


def _soft(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor) -> Tensor:
    leaf = points.detach().requires_grad_()
    drawn = ops.project_points(leaf, world_to_cam, intrinsics, (224, 224), 2, "soft")
    return torch.autograd.grad(drawn.depth.sum() + drawn.coverage.sum(), leaf)[0]


CALLS: dict[str, Callable[..., Any]] = {"z-buffer 1x1": _z_buffer, "soft 5x5 backward": _soft, "group C96": ops.group}


@pytest.mark.parametrize("B", [32, 128])
@pytest.mark.parametrize("name", CALLS)
def bench_kept_memory(compare, device, quick, name, B):
    if device.type != "cpu":
        pytest.skip("of the CPU kernels alone")
    if quick and B > 32:
        pytest.skip("a large workload: run without --quick")

    def make() -> tuple[Tensor, ...]:
        if name == "group C96":
            return torch.randn(B, 512, 96), torch.randint(512, (B, 128, 32))
        return _scene(B, 1024, 1, 224, device)

    def fresh(*args: Tensor) -> Any:
        with mock.patch.object(native, "_KEPT_FROM", float("inf")):
            return CALLS[name](*args)

    compare(
        f"memory: {name} B{B}",
        {"jointmae": CALLS[name], "jointmae, fresh memory": fresh},
        rotated(make, device),
        check=lambda result, ours: "=" if torch.equal(result, ours) else pytest.fail("other bits"),
    )
