"""project_points against scatter_reduce, a numba loop and open3d (one pixel a point), and against the reference.

Those that round the pixel as we do must agree with our z-buffer to the bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.clouds import clouds, objects
from benchmarks.peers import peers_of
from benchmarks.timing import rotated, within
from jointmae import ops
from jointmae.ops import reference

ZBUFFER = [(32, 1024, 224), (128, 1024, 224), (32, 2048, 224), (32, 8192, 224), (1, 1_000_000, 224)]
TRAINING = [(32, 1024, 112), (32, 2048, 224)]  # four views of 5x5 pixels
MODES = ("zbuffer", "soft", "harmonic")


def _scene(B: int, N: int, V: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Objects in the unit sphere, seen from 1.4 away so that the sphere fills the frame."""
    points = objects(B, N, device)
    rotation = torch.linalg.qr(torch.randn(B, V, 3, 3, device=device)).Q
    shift = torch.tensor([0.0, 0.0, 1.4], device=device).expand(B, V, 3)[..., None]
    focal = 0.5 * size * 0.98
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=device)
    return points, torch.cat([rotation, shift], dim=-1), intrinsics


@pytest.mark.parametrize(("B", "N", "size"), ZBUFFER)
def bench_project_points(compare, device, quick, B, N, size):
    """One pixel a point, one view: what the peers can do. Ours gives index and pixels too."""
    if quick and B * N > 32 * 2048:
        pytest.skip("a large workload: run without --quick")
    world_to_cam = torch.eye(4, device=device)[:3].expand(B, 1, 3, 4).contiguous()
    compare(
        f"project_points zbuffer 1x1 B{B} N{N} {size}",
        {
            "jointmae": lambda points, k, size: ops.project_points(points, world_to_cam, k, (size, size), 0).depth,
            "reference": lambda points, k, size: reference.project_points(
                points, world_to_cam, k.expand(B, 1, 3, 3), size, size, 0, "zbuffer", 1.0, 0.05, 0.1
            )[0],
        },
        rotated(lambda: _in_front(B, N, size, device), device),
        rivals=peers_of("project_points", device, B * N),
        check=within(0),
        num_bytes=20.0 * B * N + 8.0 * B * size * size,  # points, pixels; depth, index
    )


@pytest.mark.parametrize(("B", "N", "size"), ZBUFFER[:-1])
def bench_project_points_soft_and_numba(compare, device, quick, B, N, size):
    """Our soft mode with its gradient, 5x5 pixels a point, beside what a plain loop takes for one pixel a point."""
    if quick and B * N > 32 * 2048:
        pytest.skip("a large workload: run without --quick")
    world_to_cam = torch.eye(4, device=device)[:3].expand(B, 1, 3, 4).contiguous()
    grads = torch.randn(2, B, 1, size, size, device=device)

    def soft(points: Tensor, k: Tensor, size: int) -> Tensor:
        leaf = points.detach().requires_grad_()
        drawn = ops.project_points(leaf, world_to_cam, k, (size, size), 2, "soft")
        return torch.autograd.grad((drawn.depth, drawn.coverage), leaf, tuple(grads))[0]

    compare(
        f"project_points soft 5x5 backward, z-buffers 1x1, B{B} N{N} {size}",
        {
            "jointmae": soft,
            "jointmae z-buffer": lambda points, k, S: ops.project_points(points, world_to_cam, k, (S, S), 0).depth,
        },
        rotated(lambda: _in_front(B, N, size, device), device),
        rivals=[peer for peer in peers_of("project_points", device, B * N) if peer.name == "numba loop"],
        check=lambda *_: "another function",
        num_bytes=B * (40.0 * N + 36.0 * size * size),  # 4 images are written, 5 read
    )


def _in_front(B: int, N: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Objects before the camera, or the camera in a hall; cx = cy = size / 2."""
    if N >= 100_000:
        points = clouds(B, N, device)[..., [1, 2, 0]] + torch.tensor([-7.5, -2.0, 3.0], device=device)
        focal = 180.0
    else:
        points = clouds(B, N, device) + torch.tensor([0.0, 0.0, 2.5], device=device)
        focal = 260.0
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=device)
    return points.contiguous(), intrinsics, size


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "N", "size"), TRAINING)
def bench_project_points_training(compare, device, quick, B, N, size, backward, mode):
    """Four views of 5x5 pixels a point, as the loss renders them."""
    if quick and (mode == "harmonic" or size > 112):
        pytest.skip("seconds on the reference path: run without --quick")
    V, soft = 4, (1.0, 0.05, 0.1)

    def make() -> tuple[Tensor, ...]:
        points, world_to_cam, k = _scene(B, N, V, size, device)
        return points.requires_grad_(backward), world_to_cam, k.expand(B, V, 3, 3).contiguous()

    grad = torch.randn(B, V, size, size, device=device)

    def ours(*args: Tensor) -> tuple[Tensor, ...]:
        drawn = ops.project_points(*args, (size, size), 2, mode)
        return (drawn.depth, drawn.coverage) if mode == "soft" else (drawn.depth,)

    def theirs(*args: Tensor) -> tuple[Tensor, ...]:
        depth, _, coverage, *_ = reference.project_points(*args, size, size, 2, mode, *soft)
        return (depth, coverage) if mode == "soft" else (depth,)

    def run(draw: Any) -> Any:
        def call(points: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
            images = draw(points, *args)
            if not backward:
                return images
            return torch.autograd.grad(sum((image * grad).sum() for image in images), points)

        return call

    num_images = {"zbuffer": 2, "soft": 4, "harmonic": 3}[mode]  # with the index and the sum of weights
    compare(
        f"project_points {mode} 5x5 B{B} V{V} N{N} {size}{' backward' if backward else ''}",
        {"jointmae": run(ours), "reference": run(theirs)},
        rotated(make, device),
        check=within(1e-4),  # sums of 25 pixels by V views in float32, whose terms cancel
        num_bytes=B * V * ((8.0 + 8.0 * N) + 4 * num_images * size**2) + 12.0 * B * N,
    )
