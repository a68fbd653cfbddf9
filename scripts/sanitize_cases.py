#!/usr/bin/env python3
"""Every op, forward and backward, on each of its CUDA paths, so small that compute-sanitizer takes minutes.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python scripts/sanitize_cases.py

Without PyTorch's cache every tensor is an allocation of its own, so that a read past its end is seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from jointmae import ops  # noqa: E402

NUM_PATHS = {"farthest_point_sample": 4, "knn": 4, "chamfer_distance": 2, "project_points": 3}  # 0 chooses by size


@contextmanager
def path_of(op: str, path: int) -> Iterator[None]:
    """Has the CUDA kernels of `op` take that path."""
    module = import_module(f"jointmae.ops.{op}")
    vars(module)["_PATH"] = path
    yield
    vars(module)["_PATH"] = 0


def backward(*outputs: Tensor) -> None:
    """The gradients of the sum of all outputs."""
    sum(output.float().sum() for output in outputs).backward()


def farthest_point_sample(device: torch.device) -> None:  # noqa: D103
    for N, M in ((5, 5), (300, 20), (3000, 12)):
        points = torch.randn(3, N, 3, device=device)
        ops.farthest_point_sample(points, M, start=1)
        ops.farthest_point_sample(points, M // 2, lengths=torch.tensor([N, M, N - 1], device=device))


def knn(device: torch.device) -> None:  # noqa: D103
    for M, N, k in ((3, 7, 7), (33, 300, 8), (20, 700, 70)):
        queries, points = (torch.randn(3, n, 3, device=device, requires_grad=True) for n in (M, N))
        backward(ops.knn(queries, points, k, torch.tensor([N, k, (N + k) // 2], device=device))[0])


def group(device: torch.device) -> None:  # noqa: D103
    for C, dtype in ((1, torch.float32), (3, torch.float16), (64, torch.float32)):
        features = torch.randn(3, 50, C, device=device).to(dtype).requires_grad_()
        backward(ops.group(features, torch.randint(50, (3, 17, 5), device=device)))


def knn_interpolate(device: torch.device) -> None:  # noqa: D103
    queries, points, features = (torch.randn(3, *shape, device=device) for shape in ((40, 3), (9, 3), (9, 6)))
    backward(ops.knn_interpolate(queries.requires_grad_(), points.requires_grad_(), features.requires_grad_()))


def chamfer_distance(device: torch.device) -> None:  # noqa: D103
    for B, N, M in ((3, 1, 5), (65, 32, 16), (2, 300, 700)):
        x, y = (torch.randn(B, n, 3, device=device, requires_grad=True) for n in (N, M))
        lengths = torch.full((B,), max(1, N - 1), device=device)
        backward(ops.chamfer_distance(x, y), ops.chamfer_distance(x, y, norm="l1", lengths_x=lengths))


def project_points(device: torch.device) -> None:  # noqa: D103
    points = (0.3 * torch.randn(2, 200, 3, device=device)).requires_grad_()
    camera = torch.eye(4, device=device)[:3].expand(2, 2, 3, 4).clone()
    camera[..., 2, 3] = 1.4
    intrinsics = torch.tensor([[20.0, 0, 20], [0, 20, 12], [0, 0, 1]], device=device)
    for mode in ("zbuffer", "soft", "harmonic"):
        for radius in (0, 2):
            drawn = ops.project_points(points, camera, intrinsics, (24, 40), radius, mode)
            backward(drawn.depth, drawn.coverage)


def local_aligned_attention(device: torch.device) -> None:  # noqa: D103
    for dtype, d, num_2d, num_3d in (
        (torch.float32, 16, 20, 9),
        (torch.bfloat16, 64, 49, 16),
        (torch.float32, 48, 70, 64),
    ):
        q, k, v = (torch.randn(2, 2, num_2d + num_3d, d, device=device, dtype=dtype) for _ in range(3))
        cell = torch.randint(-1, 20, (2, num_2d + num_3d), device=device, dtype=torch.int32)
        q, k, v = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
        backward(ops.local_aligned_attention(q, k, v, cell, num_3d, ("local", "local")))


CASES: tuple[Callable[[torch.device], None], ...] = (
    farthest_point_sample,
    knn,
    group,
    knn_interpolate,
    chamfer_distance,
    project_points,
    local_aligned_attention,
)


def main() -> None:
    """Runs all cases, saying which, so that a report can be told from the next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    device = parser.parse_args().device
    torch.manual_seed(0)
    for case in CASES:
        for path in range(NUM_PATHS.get(case.__name__, 1)):
            print(f"{case.__name__}, path {path}", flush=True)
            with path_of(case.__name__, path):
                case(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
