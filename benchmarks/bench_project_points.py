"""project_points against scatter_reduce and a numba loop (depth alone, one pixel a point), and against the reference.

All candidates round the pixel the same way, so that their z-buffers agree to the bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import peer
from jointmae import ops
from jointmae.ops import reference

ZBUFFER = [(32, 1024, 224), (128, 1024, 224), (32, 2048, 224), (32, 8192, 224), (1, 1_000_000, 224)]
TRAINING = [(32, 1024, 112), (32, 2048, 224)]  # four views of 5x5 pixels
MODES = ("zbuffer", "soft", "harmonic")


def _scene(B: int, N: int, V: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Objects in the unit sphere, seen from 1.4 away so that the sphere fills the frame."""
    points = torch.randn(B, N, 3, device=device)
    points = points / points.norm(dim=-1, keepdim=True).clamp(min=1)
    rotation = torch.linalg.qr(torch.randn(B, V, 3, 3, device=device)).Q
    shift = torch.tensor([0.0, 0.0, 1.4], device=device).expand(B, V, 3)[..., None]
    focal = 0.5 * size * 0.98
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=device)
    return points, torch.cat([rotation, shift], dim=-1), intrinsics


def _scatter_reduce(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    x, y, z = points.unbind(-1)
    u = (intrinsics[0, 0] * x / z + intrinsics[0, 2]).floor().long()
    v = (intrinsics[1, 1] * y / z + intrinsics[1, 2]).floor().long()
    inside = (z > 1e-6) & (u >= 0) & (u < size) & (v >= 0) & (v < size)
    target = torch.where(inside, v * size + u, size * size)
    depth = torch.full((len(points), size * size + 1), torch.inf, device=points.device)
    depth.scatter_reduce_(1, target, z, "amin")
    depth = depth[:, :-1].view(-1, 1, size, size)
    return depth.where(depth < torch.inf, 0)


@cache
def _numba_loop(num_threads: int) -> Any:
    numba, np = peer("numba"), peer("numpy")
    numba.set_num_threads(num_threads)

    @numba.njit(parallel=True)
    def draw(points, fx, fy, cx, cy, size):
        depth = np.empty((points.shape[0], 1, size, size), np.float32)
        for b in numba.prange(points.shape[0]):
            depth[b] = 0
            for n in range(points.shape[1]):
                z = points[b, n, 2]
                if z > np.float32(1e-6):
                    u = np.floor(fx * points[b, n, 0] / z + cx)
                    v = np.floor(fy * points[b, n, 1] / z + cy)
                    if u >= 0 and u < size and v >= 0 and v < size:
                        row, column = int(v), int(u)
                        if depth[b, 0, row, column] == 0 or z < depth[b, 0, row, column]:
                            depth[b, 0, row, column] = z
        return depth

    return draw


def _numba(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    fx, fy, cx, cy = (intrinsics.numpy()[i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return torch.from_numpy(_numba_loop(torch.get_num_threads())(points.numpy(), fx, fy, cx, cy, size))


@pytest.mark.parametrize(("B", "N", "size"), ZBUFFER)
def bench_project_points(compare, device, quick, B, N, size):
    """One pixel a point, one view: what the peers can do. Ours gives index, coverage and pixels too."""
    if quick and B * N > 32 * 2048:
        pytest.skip("a large workload: run without --quick")
    world_to_cam = torch.eye(4, device=device)[:3].expand(B, 1, 3, 4).contiguous()
    inputs = []
    for _ in range(4):
        points, _, intrinsics = _scene(B, N, 1, size, device)
        inputs.append((points + torch.tensor([0, 0, 1.4], device=device), intrinsics, size))
    candidates = {
        "jointmae": lambda points, k, size: ops.project_points(points, world_to_cam, k, (size, size), 0).depth,
        "scatter_reduce, depth only": _scatter_reduce,
        "reference": lambda points, k, size: reference.project_points(
            points, world_to_cam, k.expand(B, 1, 3, 3), size, size, 0, "zbuffer", 1.0, 0.05, 0.1
        )[0],
    }
    if device.type == "cpu" and peer("numba"):
        candidates["numba loop, depth only"] = _numba
    compare(
        f"project_points zbuffer 1x1 B{B} N{N} {size}",
        candidates,
        inputs,
        check=_check_exact,
        num_bytes=20.0 * B * N + 12.0 * B * size * size,  # points, pixels; depth, index, coverage
    )


def _check_exact(result: Tensor, ours: Tensor) -> None:
    torch.testing.assert_close(result, ours, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "N", "size"), TRAINING)
def bench_project_points_training(compare, device, quick, B, N, size, backward, mode):
    """Four views of 5x5 pixels a point, as the loss renders them."""
    if quick and (mode == "harmonic" or size > 112):
        pytest.skip("seconds on the reference path: run without --quick")
    V, soft = 4, (1.0, 0.05, 0.1)
    inputs = []
    for _ in range(3):
        points, world_to_cam, k = _scene(B, N, V, size, device)
        inputs.append((points.requires_grad_(backward), world_to_cam, k.expand(B, V, 3, 3).contiguous()))
    grad = torch.randn(B, V, size, size, device=device)

    def run(draw: Any) -> Any:
        def call(points: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
            outputs = draw(points, *args)
            depth, coverage = outputs[0], outputs[2]
            if not backward:
                return depth, coverage
            loss = (depth * grad).sum() + (coverage * grad).sum()
            return torch.autograd.grad(loss, points)

        return call

    candidates = {
        "jointmae": run(lambda *args: ops.project_points(*args, (size, size), 2, mode)),
        "reference": run(lambda *args: reference.project_points(*args, size, size, 2, mode, *soft)),
    }
    compare(
        f"project_points {mode} 5x5 B{B} V{V} N{N} {size}{' backward' if backward else ''}",
        candidates,
        inputs,
        check=_check_gradients if backward else torch.testing.assert_close,
        num_bytes=B * V * ((8.0 + 8.0 * N) + (12 + 4 * (mode != "zbuffer")) * size**2) + 12.0 * B * N,
    )


def _check_gradients(result: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> None:
    """Sums of 25 pixels by V views in float32, whose terms cancel."""
    for a, b in zip(result, ours, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
