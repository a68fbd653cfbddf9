"""Attention among 3D and 2D tokens that lets a token read the other modality only in its own image cell (Joint-MAE,
section 3.3). B samples, h heads, L tokens of which the first num_3d are 3D, d channels a head.

On a GPU the Triton kernels of local_aligned_attention_triton.py do the work, on a CPU those of the compiled module.
Everywhere else, and for what they are not made for, PyTorch's own attention does, `_attend`.
"""

from __future__ import annotations

import functools
import warnings
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import shape_of
from jointmae.ops.native import NativeKernelsWarning, NewEmpty, address, kernels
from jointmae.ops.registry import library

_OP = "local_aligned_attention"
_SCOPES = ("local", "global")
_HAS_TRITON = find_spec("triton") is not None  # not imported before it is needed
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_KERNEL_DIMS = (16, 32, 48, 64, 96, 128)
# Up to so many tokens the kernels compare cells pair by pair. Sorting is a launch more, once in an encoder pass, and
# saves too little: of 65 or 81 tokens there are only 2 or 3 tiles of the other modality that could be left out.
FEW_TOKENS = 128


class Alignment(NamedTuple):
    """Which tokens may read which, made once by `align` and shared by all blocks of an encoder pass."""

    cell: Tensor  # [B, L] int32
    bias: (
        Tensor | None
    )  # [B, 1, L, L] added to the scores: 0 or -inf; None where all may read all, or kernels need none
    num_3d: int
    scheme: tuple[str, str]
    order: Tensor | None = None  # [B, 3, L] int32 for kernels: the tokens by cell, and where equal cells begin, end


def align(cell: Tensor, num_3d: int, scheme: tuple[str, str] = ("local", "local")) -> Alignment:
    """What `local_aligned_attention` needs of the tokens' cells [B, L] int32, computed once for many calls.

    Where there are kernels that is the order of the tokens by cell (on a GPU nothing for few tokens), elsewhere a bias
    for PyTorch's attention; under autocast the bias has autocast's dtype, else float32. Raises as
    `local_aligned_attention` does.
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
    if _has_kernels(cell):
        return Alignment(cell, None, num_3d, scheme, _order(cell, num_3d))
    return Alignment(cell, _bias(cell, num_3d, scheme), num_3d, scheme)


def _for_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _has_kernels(tensor: Tensor) -> bool:
    return _HAS_TRITON if _for_triton(tensor) else kernels is not None and tensor.device.type == "cpu"


def _serve(q: Tensor) -> bool:
    """Whether the kernels do; on a GPU, `q` is of a shape they are made for, with 31-bit offsets inside a sample."""
    if not _has_kernels(q) or q.dtype not in _KERNEL_DTYPES:
        return False
    return not _for_triton(q) or (q.shape[3] in _KERNEL_DIMS and q.shape[1] * q.shape[2] * q.shape[3] < 2**31)


def _order(cell: Tensor, num_3d: int) -> Tensor | None:
    """None where the kernels do without: for one modality, or, on a GPU, for few tokens."""
    L = cell.shape[1]
    if num_3d in (0, L) or (_for_triton(cell) and L <= FEW_TOKENS):
        return None
    order: Tensor = torch.ops.jointmae.local_aligned_attention_order(cell, num_3d)
    return order


def _bias(cell: Tensor, num_3d: int, scheme: tuple[str, str]) -> Tensor:
    device_type = cell.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else torch.float32
    valid = reference.alignment_mask(cell, num_3d, scheme)[:, None]  # [B, 1, L, L]
    return torch.zeros(valid.shape, dtype=dtype, device=cell.device).masked_fill(~valid, -torch.inf)


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

    The kernels are for float32, bfloat16 and float16: they never hold a mask, add up in float32, give the same bits
    each time, and have no second derivative. On a CPU they take any d and give the same bits for every number of
    threads; on an NVIDIA GPU they need Triton and a d of 16, 32, 48, 64, 96 or 128. Anything else is computed by
    PyTorch's attention with a bias.

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
    scopes = [scope == "global" for scope in alignment.scheme]
    out: Tensor
    if not _serve(q):
        out = torch.ops.jointmae.local_aligned_attention(q, k, v, ids, alignment.bias, alignment.num_3d, *scopes)
        return out
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (tensor.to(torch.get_autocast_dtype(q.device.type)) for tensor in (q, k, v))
    order = alignment.order
    if order is None and not all(scopes):
        order = _order(ids, alignment.num_3d)
    out, _ = torch.ops.jointmae.local_aligned_attention_forward(q, k, v, ids, order, alignment.num_3d, *scopes)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, cell: Tensor, bias: Tensor | None, num_3d: int, global_2d: bool, global_3d: bool
) -> Tensor:
    """PyTorch's attention with the bias: on the CPU it is faster with a float bias than with a bool mask."""
    if q.is_cuda and not _HAS_TRITON:
        _warn_no_triton()
    if bias is None and not (global_2d and global_3d):
        bias = _bias(cell, num_3d, (_SCOPES[global_2d], _SCOPES[global_3d]))
    if bias is not None:
        bias = bias.to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@functools.cache
def _warn_no_triton() -> None:
    warnings.warn(
        "jointmae: Triton is not installed, so local_aligned_attention is PyTorch's attention with a mask on 'cuda' "
        "(slower): run `pip install triton`",
        NativeKernelsWarning,
        stacklevel=3,
    )


def _triton() -> ModuleType:
    from jointmae.ops import local_aligned_attention_triton

    return local_aligned_attention_triton


def _order_cuda(cell: Tensor, num_3d: int) -> Tensor:
    order: Tensor = _triton().order(cell, num_3d)
    return order


def _order_cpu(cell: Tensor, num_3d: int) -> Tensor:
    cell = cell.contiguous()
    order = _order_fake(cell, num_3d)
    assert kernels is not None
    kernels.local_aligned_attention_order_cpu(
        address(cell), address(order), *cell.shape, num_3d, torch.get_num_threads()
    )
    return order


def _order_fake(cell: Tensor, num_3d: int) -> Tensor:
    B, L = cell.shape
    return cell.new_empty(B, 3, L)


def _forward_cuda(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _triton().forward(q, *args)
    return result


def _strided(tensor: Tensor) -> Any:
    """Where the CPU kernels find a tensor [B, h, L, d] whose channels are one by one."""
    assert kernels is not None
    return kernels.Strided(tensor.data_ptr(), *tensor.stride()[:3])


def _rows(tensor: Tensor) -> Tensor:
    """`tensor` [B, h, L, d] with channels one by one."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _forward_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cell: Tensor,
    order: Tensor | None,
    num_3d: int,
    global_2d: bool,
    global_3d: bool,
) -> tuple[Tensor, Tensor]:
    assert kernels is not None
    if order is None and not (global_2d and global_3d):
        order = _order(cell, num_3d)
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _outputs(q, native.new_empty)
    if q.numel() > 0:
        kernels.local_aligned_attention_cpu(
            _strided(q),
            _strided(k),
            _strided(v),
            address(order),
            _strided(out),
            address(lse),
            kernels.AttentionSpec(*q.shape, num_3d, global_2d, global_3d),
            str(q.dtype)[6:],
            torch.get_num_threads(),
        )
    return out, lse


def _forward_fake(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _outputs(q, Tensor.new_empty)


def _outputs(q: Tensor, new_empty: NewEmpty) -> tuple[Tensor, Tensor]:
    B, h, L, d = q.shape
    return new_empty(q, B, L, h, d).transpose_(1, 2), q.new_empty(B, h, L, dtype=torch.float32)


def _backward_cuda(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = _triton().backward(grad, *args)
    return result


def _backward_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cell: Tensor,
    order: Tensor | None,
    num_3d: int,
    global_2d: bool,
    global_3d: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    assert kernels is not None
    if order is None and not (global_2d and global_3d):
        order = _order(cell, num_3d)
    grad, q, k, v, out = (_rows(tensor) for tensor in (grad, q, k, v, out))
    grads = _gradients(grad, native.new_empty)
    if q.numel() > 0:
        kernels.local_aligned_attention_backward_cpu(
            _strided(grad),
            _strided(q),
            _strided(k),
            _strided(v),
            _strided(out),
            address(lse),
            address(order),
            *(_strided(tensor) for tensor in grads),
            kernels.AttentionSpec(*q.shape, num_3d, global_2d, global_3d),
            str(q.dtype)[6:],
            torch.get_num_threads(),
        )
    return grads


def _backward_fake(grad: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, Tensor.new_empty)


def _gradients(grad: Tensor, new_empty: NewEmpty) -> tuple[Tensor, Tensor, Tensor]:
    B, h, L, d = grad.shape
    dq, dk, dv = (new_empty(grad, B, L, h, d).transpose_(1, 2) for _ in range(3))
    return dq, dk, dv


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cell, order, *ctx.rest = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, cell, order)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.jointmae.local_aligned_attention_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return *grads, None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError(f"{_OP}: the kernels have no second derivative; float64 tensors have, without kernels")


_ROWS = "Tensor q, Tensor k, Tensor v"
_PAIRS = "Tensor cell, Tensor? order, int num_3d, bool global_2d, bool global_3d"

library.define(
    f"local_aligned_attention({_ROWS}, Tensor cell, Tensor? bias, int num_3d, bool global_2d, bool global_3d) -> Tensor"
)
library.impl(_OP, _attend, "CompositeImplicitAutograd")
library.define(f"{_OP}_order(Tensor cell, int num_3d) -> Tensor")
library.define(f"{_OP}_forward({_ROWS}, {_PAIRS}) -> (Tensor, Tensor)")
library.define(f"{_OP}_backward(Tensor grad, {_ROWS}, Tensor out, Tensor lse, {_PAIRS}) -> (Tensor, Tensor, Tensor)")
for _name, _cuda, _cpu, _fake in (
    (f"{_OP}_order", _order_cuda, _order_cpu, _order_fake),
    (f"{_OP}_forward", _forward_cuda, _forward_cpu, _forward_fake),
    (f"{_OP}_backward", _backward_cuda, _backward_cpu, _backward_fake),
):
    library.impl(_name, _cuda, "CUDA")
    if kernels is not None:
        library.impl(_name, _cpu, "CPU")
    torch.library.register_fake(f"jointmae::{_name}", _fake, lib=library)
torch.library.register_autograd(f"jointmae::{_OP}_forward", _backward, setup_context=_setup_context, lib=library)
torch.library.register_autograd(f"jointmae::{_OP}_backward", _no_second_derivative, lib=library)
