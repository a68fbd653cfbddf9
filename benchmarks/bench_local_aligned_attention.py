"""local_aligned_attention against PyTorch's attention with a mask, FlexAttention and explicit matmuls.

FLOPs are those of the pairs that may be read, so a rate says how far a candidate is from one that skips the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from jointmae import ops
from jointmae.ops import reference

# B, 2D tokens, 3D tokens, dtype
WORKLOADS = [
    (128, 49, 16, torch.float32),
    (32, 32, 32, torch.float32),
    (32, 49, 32, torch.float32),
    (32, 196, 64, torch.float32),
    (8, 196, 504, torch.float32),
    (128, 49, 16, torch.bfloat16),
    (32, 196, 64, torch.bfloat16),
    (8, 196, 504, torch.bfloat16),
]
LOCAL = ("local", "local")


class Masks(NamedTuple):
    """One mask in every candidate's form."""

    alignment: ops.Alignment
    valid: Tensor  # bool [B, 1, L, L]
    bias: Tensor  # of the dtype of q
    blocks: BlockMask | None


def _cells(B: int, num_2d: int, num_3d: int, device: torch.device) -> Tensor:
    """2D tokens have a cell each; the centres of 3D tokens cluster on an object, and 5 % fall outside (-1)."""
    of_2d = torch.stack([torch.randperm(196)[:num_2d].sort().values for _ in range(B)])
    of_3d = (96 + 30 * torch.randn(B, num_3d)).round().clamp(0, 195)
    of_3d[torch.rand(B, num_3d) < 0.05] = -1
    return torch.cat([of_3d, of_2d], dim=1).to(device, torch.int32)


def _blocks(cell: Tensor, num_3d: int) -> BlockMask:
    B, L = cell.shape

    def valid(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        met = (cell[b, query] == cell[b, key]) & (cell[b, query] >= 0)
        return ((query < num_3d) == (key < num_3d)) | met

    return create_block_mask(valid, B, None, L, L, device=str(cell.device))


def _masks(cell: Tensor, num_3d: int, dtype: torch.dtype, flex: bool) -> Masks:
    alignment = ops.align(cell, num_3d)
    valid = reference.alignment_mask(cell, num_3d, LOCAL)[:, None]
    bias = torch.zeros_like(valid, dtype=dtype).masked_fill(~valid, -torch.inf)
    if alignment.bias is not None:
        alignment = alignment._replace(bias=bias)  # of the dtype that autocast would give it
    return Masks(alignment, valid, bias, _blocks(cell, num_3d) if flex else None)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("B", "num_2d", "num_3d", "dtype"), WORKLOADS)
def bench_local_aligned_attention(compare, device, quick, B, num_2d, num_3d, dtype, backward):
    if quick and (num_2d + num_3d > 100 or B > 32):
        pytest.skip("a large workload: run without --quick")
    h, L, d = 6, num_2d + num_3d, 64
    flex = not quick and not (backward and device.type == "cpu")  # it compiles for long, and has no gradient on a CPU
    inputs = []
    for _ in range(3):
        q, k, v = (torch.randn(B, h, L, d, device=device).to(dtype).requires_grad_(backward) for _ in range(3))
        inputs.append((q, k, v, _masks(_cells(B, num_2d, num_3d, device), num_3d, dtype, flex)))

    def run(attend: Any) -> Any:
        def call(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> tuple[Tensor, ...]:
            out = attend(q, k, v, masks)
            return torch.autograd.grad(out.square().mean(), (q, k, v)) if backward else (out,)

        return call

    def of_ids(q: Tensor, k: Tensor, v: Tensor, masks: Masks) -> Tensor:
        return ops.local_aligned_attention(q, k, v, masks.alignment.cell, num_3d, LOCAL)

    candidates = {
        "jointmae, aligned once": run(lambda q, k, v, m: ops.local_aligned_attention(q, k, v, m.alignment)),
        "jointmae, from ids": run(of_ids),
        "reference": run(
            lambda q, k, v, m: reference.local_aligned_attention(q, k, v, m.alignment.cell, num_3d, LOCAL)
        ),
        "sdpa, bool mask": run(lambda q, k, v, m: _sdpa(q, k, v, m.valid)),
        "sdpa, float bias": run(lambda q, k, v, m: _sdpa(q, k, v, m.bias)),
        "matmul": run(lambda q, k, v, m: _matmul(q, k, v, m.bias)),
    }
    if flex:
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        candidates |= {
            "flex_attention": run(lambda q, k, v, m: compiled(q, k, v, block_mask=m.blocks)),
            "flex_attention, with its mask": run(
                lambda q, k, v, m: compiled(q, k, v, block_mask=_blocks(m.alignment.cell, num_3d))
            ),
        }
    pairs = h * sum(masks.valid.sum().item() for *_, masks in inputs) / len(inputs)
    compare(
        f"local_aligned_attention B{B} L{num_2d}+{num_3d} {str(dtype)[6:]}{' backward' if backward else ''}",
        candidates,
        inputs,
        check=_check,
        num_bytes=(12.0 if backward else 4.0) * B * h * L * d * dtype.itemsize,  # backward: 5 are read and 3 written
        flops=4.0 * pairs * d * (3.5 if backward else 1),
    )


def _check(result: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> None:
    for a, b in zip(result, ours, strict=True):
        assert (a.float() - b.float()).norm() <= 4 * torch.finfo(a.dtype).eps ** 0.9 * b.float().norm()
