"""local_aligned_attention against PyTorch's attention with a bool mask and against explicit matmuls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import reference

# B, 2D tokens, 3D tokens, dtype
WORKLOADS = [
    (128, 49, 16, torch.float32),
    (32, 32, 32, torch.float32),
    (32, 49, 32, torch.float32),
    (32, 196, 64, torch.float32),
    (8, 196, 504, torch.float32),
    (32, 196, 64, torch.bfloat16),
    (8, 196, 504, torch.bfloat16),
]
LOCAL = ("local", "local")


def _cells(B: int, num_2d: int, num_3d: int, device: torch.device) -> Tensor:
    """2D tokens have a cell each; the centres of 3D tokens cluster on an object, and 5 % fall outside (-1)."""
    of_2d = torch.stack([torch.randperm(196)[:num_2d].sort().values for _ in range(B)])
    of_3d = (96 + 30 * torch.randn(B, num_3d)).round().clamp(0, 195)
    of_3d[torch.rand(B, num_3d) < 0.05] = -1
    return torch.cat([of_3d, of_2d], dim=1).to(device, torch.int32)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "num_2d", "num_3d", "dtype"), WORKLOADS)
def bench_local_aligned_attention(compare, device, quick, B, num_2d, num_3d, dtype, backward):
    if quick and num_2d + num_3d > 100:
        pytest.skip("a large workload: run without --quick")
    h, L, d = 6, num_2d + num_3d, 64
    inputs = []
    for _ in range(3):
        q, k, v = (torch.randn(B, h, L, d, device=device).to(dtype).requires_grad_(backward) for _ in range(3))
        cell = _cells(B, num_2d, num_3d, device)
        alignment = ops.align(cell, num_3d)
        valid = reference.alignment_mask(cell, num_3d, LOCAL)[:, None]
        bias = torch.zeros_like(valid, dtype=dtype).masked_fill(~valid, -torch.inf)
        inputs.append((q, k, v, alignment._replace(bias=bias if alignment.bias is not None else None), valid))

    def run(attend: Any) -> Any:
        def call(q: Tensor, k: Tensor, v: Tensor, alignment: ops.Alignment, valid: Tensor) -> tuple[Tensor, ...]:
            out = attend(q, k, v, alignment, valid)
            return torch.autograd.grad(out.square().mean(), (q, k, v)) if backward else (out,)

        return call

    def of_ids(q: Tensor, k: Tensor, v: Tensor, alignment: ops.Alignment) -> Tensor:
        return ops.local_aligned_attention(q, k, v, alignment.cell, num_3d, LOCAL)

    candidates = {
        "jointmae, aligned once": run(lambda q, k, v, a, _: ops.local_aligned_attention(q, k, v, a)),
        "jointmae, from ids": run(lambda q, k, v, a, _: of_ids(q, k, v, a)),
        "reference": run(lambda q, k, v, a, _: reference.local_aligned_attention(q, k, v, a.cell, num_3d, LOCAL)),
        "sdpa, bool mask": run(lambda q, k, v, _, valid: _sdpa(q, k, v, valid)),
        "matmul": run(lambda q, k, v, a, _: _matmul(q, k, v, a.bias)),
    }
    compare(
        f"local_aligned_attention B{B} L{num_2d}+{num_3d} {str(dtype)[6:]}{' backward' if backward else ''}",
        candidates,
        inputs,
        check=_check,
        num_bytes=4.0 * B * h * L * d * dtype.itemsize,
        flops=4.0 * B * h * L * L * d * (3.5 if backward else 1),
    )


def _check(result: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> None:
    for a, b in zip(result, ours, strict=True):
        assert (a.float() - b.float()).norm() <= 4 * torch.finfo(a.dtype).eps ** 0.9 * b.float().norm()
