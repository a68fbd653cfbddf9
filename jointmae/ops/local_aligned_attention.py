"""Attention among 3D and 2D tokens that lets a token read the other modality only in its own image cell (Joint-MAE,
section 3.3). B samples, h heads, L tokens of which the first num_3d are 3D, d channels a head.

The op has one implementation made of PyTorch's own, `_attend`; a kernel for a device is registered beside it, under the
device's key and its autograd key, from local_aligned_attention_triton.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jointmae.ops import reference
from jointmae.ops.checks import shape_of
from jointmae.ops.registry import library

_OP = "local_aligned_attention"
_SCOPES = ("local", "global")


class Alignment(NamedTuple):
    """Which tokens may read which, made once by `align` and shared by all blocks of an encoder pass."""

    cell: Tensor  # [B, L] int32
    bias: Tensor | None  # [B, 1, L, L] added to the scores: 0 or -inf; None where all may read all
    num_3d: int
    scheme: tuple[str, str]


def align(cell: Tensor, num_3d: int, scheme: tuple[str, str] = ("local", "local")) -> Alignment:
    """What `local_aligned_attention` needs of the tokens' cells [B, L] int32, computed once for many calls.

    Under autocast the bias has autocast's dtype, else float32. Raises as `local_aligned_attention` does.
    """
    if cell.dtype != torch.int32:
        raise TypeError(f"{_OP}: cell must be int32, got {cell.dtype}")
    if cell.dim() != 2:
        raise ValueError(f"{_OP}: cell must have shape [B, L], got {shape_of(cell)}")
    if not 0 <= num_3d <= cell.shape[1]:
        raise ValueError(f"{_OP}: num_3d must be in [0, L={cell.shape[1]}], got {num_3d}")
    if len(scheme) != 2 or scheme[0] not in _SCOPES or scheme[1] not in _SCOPES:
        raise ValueError(f"{_OP}: scheme must be two of 'local' and 'global', got {scheme!r}")
    if scheme == ("global", "global"):
        return Alignment(cell, None, num_3d, scheme)
    device_type = cell.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else torch.float32
    valid = reference.alignment_mask(cell, num_3d, scheme)[:, None]  # [B, 1, L, L]
    bias = torch.zeros(valid.shape, dtype=dtype, device=cell.device).masked_fill(~valid, -torch.inf)
    return Alignment(cell, bias, num_3d, scheme)


def local_aligned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cell: Tensor | Alignment,
    num_3d: int | None = None,
    scheme: tuple[str, str] | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q, k, v [B, h, L, d], with bias -inf where a query may not read a key.

    The first `num_3d` tokens are 3D, the others 2D. A token may read all of its own modality, and the tokens of the
    other one that have the same cell; cell -1 equals none. `scheme` = (a, b) widens this: a is for 2D queries on 3D
    keys, b for 3D queries on 2D keys, each "local" (the default) or "global" (all may be read). `cell` is the ids
    [B, L] int32, or, to prepare many calls once, what `align` made of ids, num_3d and scheme; both give the same bits.
    Differentiable in q, k and v. B = 0 gives an empty result. NaN spreads as in any attention.

    Raises ValueError for shapes that do not fit, num_3d outside 0..L and other schemes, TypeError for cells that are
    not int32 and for q, k, v that are not of one floating-point dtype.
    """
    if q.dim() != 4:
        raise ValueError(f"{_OP}: q must have shape [B, h, L, d], got {shape_of(q)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape:
            raise ValueError(f"{_OP}: {name} must have the shape of q, {shape_of(q)}, got {shape_of(tensor)}")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{_OP}: {name} must have the dtype of q, {q.dtype}, got {tensor.dtype}")
    if not q.is_floating_point():
        raise TypeError(f"{_OP}: q must be floating point, got {q.dtype}")
    if isinstance(cell, Alignment):
        if num_3d is not None or scheme is not None:
            raise ValueError(f"{_OP}: num_3d and scheme are part of the Alignment, give them to align instead")
        alignment = cell
    else:
        if num_3d is None:
            raise ValueError(f"{_OP}: num_3d is needed with cell ids, got None")
        alignment = align(cell, num_3d, scheme or ("local", "local"))
    ids = alignment.cell
    if ids.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"{_OP}: cell must have shape [B={q.shape[0]}, L={q.shape[2]}], got {shape_of(ids)}")
    if ids.device != q.device:
        raise ValueError(f"{_OP}: q and cell must be on one device, got {q.device} and {ids.device}")
    out: Tensor = torch.ops.jointmae.local_aligned_attention(
        q, k, v, ids, alignment.bias, alignment.num_3d, *(scope == "global" for scope in alignment.scheme)
    )
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, cell: Tensor, bias: Tensor | None, num_3d: int, global_2d: bool, global_3d: bool
) -> Tensor:
    """PyTorch's attention with the bias: on the CPU it is faster with a float bias than with a bool mask."""
    if bias is not None:
        bias = bias.to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


library.define(
    "local_aligned_attention(Tensor q, Tensor k, Tensor v, Tensor cell, Tensor? bias, int num_3d, bool global_2d, "
    "bool global_3d) -> Tensor"
)
library.impl(_OP, _attend, "CompositeImplicitAutograd")
