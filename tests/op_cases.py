"""What the tests of every op have in common: inputs that are hard, and properties that all ops have."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import native

# Names of `clouds` below.
KINDS = ("integer", "random", "duplicates", "equal", "huge", "overflowing", "tiny")
SIZES = ((2, 1), (3, 17), (2, 64), (1, 300), (2, 1500))  # B, N: around the vector, block and tile sizes


def clouds(
    kind: str, B: int, N: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Points [B, N, 3]: values that round, overflow, underflow or tie."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(B, N, 3, generator=generator, dtype=torch.float64)
    if kind == "integer":
        points = (points * 2).round()  # few values, so many ties
    elif kind == "duplicates":
        points[:, (N + 1) // 2 :] = points[:, : N // 2].clone()
    elif kind == "equal":
        points[:] = 0.3
    elif kind == "huge":
        points *= 1e18  # squares near the largest float32
    elif kind == "overflowing":
        points = points.sign() * points.abs().clamp(0.1, 3) * 1e38  # squares are infinite
    elif kind == "tiny":
        points *= 1e-38  # squares are 0
    return points.to(device, dtype)


def equal(a: Any, b: Any) -> bool:
    """The same bits, in tensors or tuples of them."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def outputs_of(projection: ops.Projection) -> tuple[Tensor, ...]:
    """All that `project_points` gives."""
    return projection.depth, projection.index, projection.coverage, projection.pixels, projection.dropped


def check_same_bits(call: Callable[[], Any], num_threads: Callable[[int], None]) -> None:
    """The same bits on a second run and for any number of threads, more than there are cores too."""
    num_threads(1)
    expected = call()
    for threads in (1, 2, 7):
        num_threads(threads)
        assert equal(call(), expected), f"other bits with {threads} threads"


def check_concurrent(call: Callable[[], Any]) -> None:
    """Four Python threads at once get what one gets."""
    expected = call()
    results: list[Any] = [None] * 4

    def run(i: int) -> None:
        for _ in range(5):
            results[i] = call()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(result, expected) for result in results)


def check_fork(call: Callable[[], Any]) -> None:
    """A forked child whose parent has used the thread pool can use it too."""
    if native.kernels is None:
        pytest.skip("needs native kernels: PyTorch's own threads do not survive a fork")
    expected = call()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        sender.send(equal(call(), expected))
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(60), "the forked child hangs"
    assert receiver.recv() is True
    process.join(60)


def every_op(device: torch.device) -> dict[str, tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """Each op with its gradient at a size of its own: a function of tensors that gives all outputs, and its inputs."""
    x, y = clouds("random", 3, 300, device), clouds("random", 3, 200, device, seed=1)
    features = torch.randn(3, 300, 20, generator=torch.Generator().manual_seed(2)).to(device)
    cameras = torch.eye(4)[:3].repeat(3, 2, 1, 1)
    cameras[..., 2, 3] = 4
    cameras = cameras.to(device)
    intrinsics = torch.tensor([[40.0, 0, 24], [0, 40.0, 20], [0, 0, 1]]).to(device)

    def with_gradients(call: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            outputs = call(*leaves)
            differentiable = [output for output in outputs if output.requires_grad]
            weights = [torch.arange(1, output.numel() + 1, device=output.device) % 7 - 3.0 for output in differentiable]
            grads = torch.autograd.grad(
                differentiable, leaves, [w.view_as(o) for w, o in zip(weights, differentiable, strict=True)]
            )
            return *(output.detach() for output in outputs), *grads

        return run

    def project(mode: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
        return lambda points: outputs_of(ops.project_points(points, cameras, intrinsics, (40, 48), 2, mode))

    def gather(points: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return ops.knn_interpolate(points[:, :50] + 0.1, points, features), ops.group(features, _neighbors(points))

    def attend(num_3d: int) -> Callable[..., tuple[Tensor, ...]]:
        return lambda q, k, v: (ops.local_aligned_attention(q, k, v, cell[:, : q.shape[2]], num_3d),)

    cell = torch.randint(-1, 40, (2, 200), generator=torch.Generator().manual_seed(3), dtype=torch.int32).to(device)
    qkv = torch.randn(3, 2, 2, 200, 64, generator=torch.Generator().manual_seed(4)).to(device)
    return {
        "farthest_point_sample": (lambda points: (ops.farthest_point_sample(points, 70),), (x,)),
        "knn": (with_gradients(lambda queries, points: ops.knn(queries, points, 9)), (y, x)),
        "group and knn_interpolate": (with_gradients(gather), (x, features)),
        "chamfer_distance": (with_gradients(lambda x, y: ops.chamfer_distance(x, y, reduction="none")), (x, y)),
        **{f"project_points {mode}": (with_gradients(project(mode)), (x,)) for mode in ("zbuffer", "soft", "harmonic")},
        "local_aligned_attention of few": (with_gradients(attend(16)), tuple(qkv[:, :, :, :65])),
        "local_aligned_attention of many": (with_gradients(attend(64)), tuple(qkv)),
    }


def _neighbors(points: Tensor) -> Tensor:
    return ops.knn(points[:, :60], points, 5)[1]


def isa_levels() -> list[str]:
    """The instruction sets that this machine can be made to use."""
    levels = ["scalar", "avx2", "avx512"]
    return levels[: levels.index(native.kernels.isa()) + 1] if native.kernels is not None else []
