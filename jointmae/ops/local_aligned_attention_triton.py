"""The Triton kernels of `local_aligned_attention`. Imported at the first call on a GPU, since Triton need not be there.

B samples, h heads, L tokens of which the first num_3d are 3D, D channels a head. q, k and v have any strides, the same
for all three, but channels one by one; results are [B, L, h, D], as the linear layer after the attention reads them.
Scores and sums are float32, exponentials to base 2. No atomics, so the same bits each time.

A program owns a block of rows of one modality: queries, or in the other half of the backward pass keys. First they meet
a range of tokens that is the same for all of them, their own modality or, where the scheme is global, all tokens: tile
by tile, without a mask. Then they meet the other modality, and there are two ways to know whom. Few tokens: tile by
tile again, a pair is masked by its cells. Many tokens: `order` has put them by cell, so those that share a cell with
any row of the block are one short run, all others are never looked at, and the mask is an interval for each row.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jointmae.ops.local_aligned_attention import FEW_TOKENS

_LOG2_E = tl.constexpr(1.4426950408889634)
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; a maximum that starts here leaves no inf - inf


@triton.jit
def _values(matrix, tokens, present, stride, D: tl.constexpr):
    """Rows `tokens` of a matrix [L, D]; 0 where `present` is False, unless it is None, and in channels beyond D."""
    WIDTH: tl.constexpr = triton.next_power_of_2(D)
    channels = tl.arange(0, WIDTH)[None, :]
    where = matrix + tokens[:, None] * stride + channels
    if present is not None and WIDTH != D:
        values = tl.load(where, mask=present[:, None] & (channels < D), other=0.0)
    elif present is not None:
        values = tl.load(where, mask=present[:, None], other=0.0)
    elif WIDTH != D:
        values = tl.load(where, mask=channels < D, other=0.0)
    else:
        values = tl.load(where)
    return values


@triton.jit
def _factor(matrix, tokens, present, stride, D: tl.constexpr):
    """Rows `tokens` for `_products`: their values, or of float32 where they are (of token 0 where `present` is False).

    Float32 is multiplied without tensor cores, and a thread would hold all channels of its rows: more than fit.
    """
    if matrix.dtype.element_ty == tl.float32:
        if present is not None:
            tokens = tl.where(present, tokens, 0)
        factor = matrix + tokens[:, None] * stride
    else:
        factor = _values(matrix, tokens, present, stride, D)
    return factor


@triton.jit
def _products(a, b, D: tl.constexpr):
    """Products of all rows of one factor with all rows of another, float32."""
    if a.dtype.is_ptr():
        products = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
        for start in range(0, D, 16):
            channels = start + tl.arange(0, 16)[None, :]
            part = tl.load(b + channels)
            products = tl.dot(tl.load(a + channels), tl.trans(part), products, input_precision="ieee")
    else:
        products = tl.dot(a, tl.trans(b))
    return products


@triton.jit
def _add(weights, values, sums):
    """`sums` and the rows `values` times their weights [row of the sums, row]."""
    return tl.dot(weights.to(values.dtype), values, sums, input_precision="ieee")


@triton.jit
def _zeros(ROWS: tl.constexpr, D: tl.constexpr):
    """Sums to begin with."""
    return tl.zeros([ROWS, triton.next_power_of_2(D)], tl.float32)


@triton.jit
def _store(matrix, tokens, present, stride, rows, D: tl.constexpr):
    """The counterpart of `_values`."""
    channels = tl.arange(0, triton.next_power_of_2(D))[None, :]
    where = matrix + tokens[:, None] * stride + channels
    tl.store(where, rows.to(matrix.dtype.element_ty), mask=present[:, None] & (channels < D))


@triton.jit
def _scores(a, b, met, D: tl.constexpr):
    """Scores in units of log2, -inf where not `met`, unless that is None."""
    scores = _products(a, b, D) * (D**-0.5 * _LOG2_E)
    if met is not None:
        scores = tl.where(met, scores, float("-inf"))
    return scores


@triton.jit
def _attend(q, k, v, tokens, present, met, stride_l, sums, total, highest, D: tl.constexpr):
    """Queries q read the keys and values `tokens`: the new sums, weights in all, and highest scores."""
    scores = _scores(q, _factor(k, tokens, present, stride_l, D), met, D)
    higher = tl.maximum(highest, tl.max(scores, 1))
    p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    sums = _add(p, _values(v, tokens, present, stride_l, D), sums * shrink[:, None])
    return sums, total * shrink + tl.sum(p, 1), higher


@triton.jit
def _add_grad_q(q, grad, lse, delta, k, v, tokens, present, met, stride_l, sums, D: tl.constexpr):
    """What the keys and values `tokens` add to the gradient of queries q, but for the scale of the scores."""
    p = tl.exp2(_scores(q, _factor(k, tokens, present, stride_l, D), met, D) - lse[:, None])
    grad_p = _products(grad, _factor(v, tokens, present, stride_l, D), D)
    return _add(p * (grad_p - delta[:, None]), _values(k, tokens, present, stride_l, D), sums)


@triton.jit
def _add_grad_kv(
    k,
    v,
    q,
    grad,
    out,
    lse,
    delta,
    tokens,
    present,
    met,
    stride_l,
    stride_out,
    sum_k,
    sum_v,
    D: tl.constexpr,
    TAKE_DELTA: tl.constexpr,
):
    """What the queries `tokens` add to the gradients of keys k, but for the scale, and of values v.

    `met` is [key, query] here. Where there is no query, the logarithm of its sum is inf, and so probabilities are 0.
    """
    if present is not None:
        log = tl.load(lse + tokens, mask=present, other=float("inf"))
    else:
        log = tl.load(lse + tokens)
    p = tl.exp2(_scores(k, _factor(q, tokens, present, stride_l, D), met, D) - log[None, :])
    values = _values(grad, tokens, present, stride_out, D)
    sum_v = _add(p, values, sum_v)
    if not TAKE_DELTA:
        product = _delta(values, out, tokens, present, stride_out, D)
    elif present is not None:
        product = tl.load(delta + tokens, mask=present, other=0.0)
    else:
        product = tl.load(delta + tokens)
    grad_p = _products(v, _factor(grad, tokens, present, stride_out, D), D)
    sum_k = _add(p * (grad_p - product[None, :]), _values(q, tokens, present, stride_l, D), sum_k)
    return sum_k, sum_v


@triton.jit
def _delta(grad, out, tokens, present, stride_out, D: tl.constexpr):
    """The product of each row's gradient, given by value, with its output."""
    return tl.sum(grad.to(tl.float32) * _values(out, tokens, present, stride_out, D).to(tl.float32), 1)


@triton.jit
def _order_kernel(
    cell,  # [B, L]
    order,  # [B, 3, L]
    L,
    num_3d,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program places ROWS tokens of a sample, by counting the tokens that come before each."""
    blocks = tl.cdiv(L, ROWS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    cell += b * L
    cell_i = tl.load(cell + i, mask=i < L, other=-1)[:, None]
    before = tl.zeros([ROWS], tl.int32)  # tokens of the own modality that come first
    below = tl.zeros([ROWS], tl.int32)  # tokens of the other one in lower cells
    equal = tl.zeros([ROWS], tl.int32)  # and in the same
    for start in range(0, L, COLUMNS):
        j = (start + tl.arange(0, COLUMNS))[None, :]
        cell_j = tl.load(cell + j, mask=j < L, other=-1)
        other = (i < num_3d)[:, None] ^ (j < num_3d)
        comes_first = (cell_j < cell_i) | ((cell_j == cell_i) & (j < i[:, None]))
        before += tl.sum(((j < L) & ~other & comes_first).to(tl.int32), 1)
        below += tl.sum(((j < L) & other & (cell_j < cell_i)).to(tl.int32), 1)
        equal += tl.sum(((j < L) & other & (cell_j == cell_i) & (cell_j >= 0)).to(tl.int32), 1)
    place = before + tl.where(i < num_3d, 0, num_3d)
    begin = below + tl.where(i < num_3d, num_3d, 0)
    order += b * 3 * L
    tl.store(order + place, i, mask=i < L)
    tl.store(order + L + place, begin, mask=i < L)
    tl.store(order + 2 * L + place, begin + equal, mask=i < L)


@triton.jit
def _block_of(
    number, guide, h, L, num_3d, WIDE_3D: tl.constexpr, WIDE_2D: tl.constexpr, HOW: tl.constexpr, ROWS: tl.constexpr
):
    """The rows of block `number`, and whom they meet. Blocks of 3D tokens come before those of 2D tokens.

    Gives the head of B * h; the tokens and which of them exist; the range begin..end of tokens that all rows meet; the
    places low..high of the other modality that any row meets, none for a `WIDE` modality; and what decides about a row
    and a place there: the row's cell, or its interval first..last of places.
    """
    blocks_3d = tl.cdiv(num_3d, ROWS)
    blocks = blocks_3d + tl.cdiv(L - num_3d, ROWS)
    head, block = (number // blocks).to(tl.int64), number % blocks
    is_3d = block < blocks_3d
    wide = tl.where(is_3d, WIDE_3D, WIDE_2D)
    begin, end = tl.where(is_3d, 0, num_3d), tl.where(is_3d, num_3d, L)
    low, high = tl.where(is_3d, num_3d, 0), tl.where(wide, 0, tl.where(is_3d, L, num_3d))
    place = begin + (block - tl.where(is_3d, 0, blocks_3d)) * ROWS + tl.arange(0, ROWS)
    present = place < end
    begin, end = tl.where(wide, 0, begin), tl.where(wide, L, end)
    if HOW == "order":
        guide += head // h * 3 * L
        tokens = tl.load(guide + place, mask=present, other=0)
        first = tl.load(guide + L + place, mask=present, other=0)
        last = tl.load(guide + 2 * L + place, mask=present, other=0)
        high = tl.minimum(high, tl.max(tl.where(first < last, last, 0), 0))
        low = tl.min(tl.where(first < last, first, high), 0)
    elif HOW == "cell":
        guide += head // h * L
        tokens = place
        first = tl.load(guide + place, mask=present, other=-1)  # its cell
        last = first
    else:
        tokens, first, last, high = place, place, place, low
    return head, tokens, present, begin, end, tl.minimum(low, high), high, first, last


@triton.jit
def _others_at(at, head, guide, h, L, full, end, low, high, first, last, COLUMNS: tl.constexpr, HOW: tl.constexpr):
    """Tokens that not every row meets, which of them exist, and which rows meet them, [row, token].

    From `low` on those at the places `at`.. of the other modality; before `low`, the ragged end full..end of the range.
    """
    in_range = at < low
    places = tl.where(in_range, full, at) + tl.arange(0, COLUMNS)
    present = places < tl.where(in_range, end, high)
    tokens = places
    met = present[None, :]
    if HOW == "order":
        tokens = tl.load(guide + head // h * 3 * L + places, mask=present, other=0)
        tokens = tl.where(in_range, places, tokens)
        met = met & (in_range | ((places[None, :] >= first[:, None]) & (places[None, :] < last[:, None])))
    elif HOW == "cell":
        cells = tl.load(guide + head // h * L + places, mask=present, other=-1)
        met = met & (in_range | ((cells[None, :] == first[:, None]) & (cells >= 0)[None, :]))
    return tokens, present, met


@triton.jit
def _forward_kernel(
    q,  # [B, h, L, D]
    k,
    v,
    guide,  # HOW "order": [B, 3, L] of `order`; "cell": the cells [B, L]
    out,  # [B, L, h, D]
    lse,  # [B, h, L]
    stride_b,
    stride_h,
    stride_l,
    h,
    L,
    num_3d,
    GLOBAL_2D: tl.constexpr,  # 2D queries read all keys
    GLOBAL_3D: tl.constexpr,
    HOW: tl.constexpr,  # how to know the keys of the other modality; "none" where no row has any beyond its range
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns ROWS queries of a head of a sample."""
    head, tokens, present, begin, end, low, high, first, last = _block_of(
        tl.program_id(0), guide, h, L, num_3d, GLOBAL_3D, GLOBAL_2D, HOW, ROWS
    )
    start = head // h * stride_b + head % h * stride_h
    q, k, v = q + start, k + start, v + start
    q = _factor(q, tokens, present, stride_l, D)
    sums = _zeros(ROWS, D)
    total = tl.zeros([ROWS], tl.float32)
    highest = total + _LOWEST
    full = begin + (end - begin) // COLUMNS * COLUMNS
    for at in range(begin, full, COLUMNS):
        others = at + tl.arange(0, COLUMNS)
        sums, total, highest = _attend(q, k, v, others, None, None, stride_l, sums, total, highest, D)
    for at in range(tl.where(full < end, low - COLUMNS, low), high, COLUMNS):
        others, exist, met = _others_at(at, head, guide, h, L, full, end, low, high, first, last, COLUMNS, HOW)
        sums, total, highest = _attend(q, k, v, others, exist, met, stride_l, sums, total, highest, D)
    total = tl.where(total == 0, 1.0, total)  # of a query that may read nothing: the result is 0
    _store(out + (head // h * L * h + head % h) * D, tokens, present, h * D, sums / total[:, None], D)
    tl.store(lse + head * L + tokens, highest + tl.log2(total), mask=present)


@triton.jit
def _grad_q(
    grad,
    q,
    k,
    v,
    out,
    lse,
    guide,
    delta,
    dq,
    stride_b,
    stride_h,
    stride_l,
    h,
    L,
    num_3d,
    number,
    WIDE_3D: tl.constexpr,
    WIDE_2D: tl.constexpr,
    HOW: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEAVE_DELTA: tl.constexpr,
):
    """The gradient of ROWS queries; leaves `_delta` for the keys, if asked to."""
    head, tokens, present, begin, end, low, high, first, last = _block_of(
        number, guide, h, L, num_3d, WIDE_3D, WIDE_2D, HOW, ROWS
    )
    start = head // h * stride_b + head % h * stride_h
    q, k, v = q + start, k + start, v + start
    start = (head // h * L * h + head % h) * D
    product = _delta(_values(grad + start, tokens, present, h * D, D), out + start, tokens, present, h * D, D)
    if LEAVE_DELTA:
        tl.store(delta + head * L + tokens, product, mask=present)
    log = tl.load(lse + head * L + tokens, mask=present, other=float("inf"))
    q = _factor(q, tokens, present, stride_l, D)
    grad = _factor(grad + start, tokens, present, h * D, D)
    sums = _zeros(ROWS, D)
    full = begin + (end - begin) // COLUMNS * COLUMNS
    for at in range(begin, full, COLUMNS):
        others = at + tl.arange(0, COLUMNS)
        sums = _add_grad_q(q, grad, log, product, k, v, others, None, None, stride_l, sums, D)
    for at in range(tl.where(full < end, low - COLUMNS, low), high, COLUMNS):
        others, exist, met = _others_at(at, head, guide, h, L, full, end, low, high, first, last, COLUMNS, HOW)
        sums = _add_grad_q(q, grad, log, product, k, v, others, exist, met, stride_l, sums, D)
    _store(dq + start, tokens, present, h * D, sums * D**-0.5, D)


@triton.jit
def _grad_kv(
    grad,
    q,
    k,
    v,
    out,
    lse,
    guide,
    delta,
    dk,
    dv,
    stride_b,
    stride_h,
    stride_l,
    h,
    L,
    num_3d,
    number,
    WIDE_3D: tl.constexpr,
    WIDE_2D: tl.constexpr,
    HOW: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAKE_DELTA: tl.constexpr,
):
    """The gradients of ROWS keys and values; here `WIDE` says that all queries read the keys of a modality."""
    head, tokens, present, begin, end, low, high, first, last = _block_of(
        number, guide, h, L, num_3d, WIDE_3D, WIDE_2D, HOW, ROWS
    )
    start = head // h * stride_b + head % h * stride_h
    q, k, v = q + start, k + start, v + start
    start = (head // h * L * h + head % h) * D
    grad, out, lse, delta = grad + start, out + start, lse + head * L, delta + head * L
    k = _factor(k, tokens, present, stride_l, D)
    v = _factor(v, tokens, present, stride_l, D)
    sum_k, sum_v = _zeros(ROWS, D), _zeros(ROWS, D)
    full = begin + (end - begin) // COLUMNS * COLUMNS
    for at in range(begin, full, COLUMNS):
        others = at + tl.arange(0, COLUMNS)
        sum_k, sum_v = _add_grad_kv(
            k, v, q, grad, out, lse, delta, others, None, None, stride_l, h * D, sum_k, sum_v, D, TAKE_DELTA
        )
    for at in range(tl.where(full < end, low - COLUMNS, low), high, COLUMNS):
        others, exist, met = _others_at(at, head, guide, h, L, full, end, low, high, first, last, COLUMNS, HOW)
        sum_k, sum_v = _add_grad_kv(
            k, v, q, grad, out, lse, delta, others, exist, met, stride_l, h * D, sum_k, sum_v, D, TAKE_DELTA
        )
    _store(dk + start, tokens, present, h * D, sum_k * D**-0.5, D)
    _store(dv + start, tokens, present, h * D, sum_v, D)


@triton.jit
def _backward_kernel(
    grad,  # [B, L, h, D]
    q,  # [B, h, L, D]
    k,
    v,
    out,  # [B, L, h, D]
    lse,  # [B, h, L]
    guide,
    delta,  # [B, h, L]
    dq,  # [B, L, h, D]
    dk,
    dv,
    stride_b,
    stride_h,
    stride_l,
    h,
    L,
    num_3d,
    GLOBAL_2D: tl.constexpr,  # 2D queries read all 3D keys
    GLOBAL_3D: tl.constexpr,
    HOW: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,  # "q" leaves `delta` to "kv"; "both" needs none, every other program does keys
):
    """A program owns ROWS queries, or ROWS keys and values, of a head of a sample."""
    if PART == "q":
        _grad_q(
            grad,
            q,
            k,
            v,
            out,
            lse,
            guide,
            delta,
            dq,
            stride_b,
            stride_h,
            stride_l,
            h,
            L,
            num_3d,
            tl.program_id(0),
            GLOBAL_3D,
            GLOBAL_2D,
            HOW,
            D,
            ROWS,
            COLUMNS,
            True,
        )
    elif PART == "kv":
        _grad_kv(
            grad,
            q,
            k,
            v,
            out,
            lse,
            guide,
            delta,
            dk,
            dv,
            stride_b,
            stride_h,
            stride_l,
            h,
            L,
            num_3d,
            tl.program_id(0),
            GLOBAL_2D,
            GLOBAL_3D,
            HOW,
            D,
            ROWS,
            COLUMNS,
            True,
        )
    elif tl.program_id(0) % 2 == 0:
        _grad_kv(
            grad,
            q,
            k,
            v,
            out,
            lse,
            guide,
            delta,
            dk,
            dv,
            stride_b,
            stride_h,
            stride_l,
            h,
            L,
            num_3d,
            tl.program_id(0) // 2,
            GLOBAL_2D,
            GLOBAL_3D,
            HOW,
            D,
            ROWS,
            COLUMNS,
            False,
        )
    else:
        _grad_q(
            grad,
            q,
            k,
            v,
            out,
            lse,
            guide,
            delta,
            dq,
            stride_b,
            stride_h,
            stride_l,
            h,
            L,
            num_3d,
            tl.program_id(0) // 2,
            GLOBAL_3D,
            GLOBAL_2D,
            HOW,
            D,
            ROWS,
            COLUMNS,
            False,
        )


class Tiles(NamedTuple):
    """How a kernel is cut: rows that a program owns, tokens they meet at a time, and how Triton builds the program."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def tiles(L: int, d: int, dtype: torch.dtype) -> Tiles:
    """Tiles that fit into the registers of sm_80, sm_90 and sm_100, as ptxas reports; float32 above d 64 almost does.

    64 rows fill the tensor core instructions of sm_90; with 32 columns, two or more programs share a multiprocessor.
    Few tokens have small tiles, since most of a larger one would lie beyond the end of a modality.
    Not measured; replace this function to try others.
    """
    if dtype == torch.float32:
        return Tiles(32, 16, 8, 1) if d <= 64 else Tiles(16, 16, 8, 1)
    if L > FEW_TOKENS and d <= 64:
        return Tiles(64, 32, 4, 2)
    return Tiles(32, 32, 4, 2) if L > 32 or d > 64 else Tiles(16, 16, 1, 2)


def order(cell: Tensor, num_3d: int) -> Tensor:
    """See `jointmae.ops.local_aligned_attention`, as for the functions below."""
    B, L = cell.shape
    result = cell.new_empty(B, 3, L)
    if result.numel() > 0:
        with torch.cuda.device_of(cell):
            _order_kernel[(B * triton.cdiv(L, 16),)](
                cell.contiguous(), result, L, num_3d, ROWS=16, COLUMNS=128, enable_fp_fusion=True
            )
    return result


class _Plan(NamedTuple):
    """What the kernels of both directions are told in the same way."""

    q: Tensor
    k: Tensor
    v: Tensor
    guide: Tensor
    sizes: tuple[int, ...]  # strides of q, k and v; h, L, num_3d
    options: dict[str, Any]
    num_blocks: int


def _plan(q: Tensor, k: Tensor, v: Tensor, cell: Tensor, order: Tensor | None, num_3d: int, is_global: bool) -> _Plan:
    """`is_global`: both directions are, so to the kernels all tokens are of one modality."""
    B, h, L, d = q.shape
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1 or q.stride(2) * L >= 2**31:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    if is_global or num_3d in (0, L):
        how, guide, num_3d = "none", cell, L
    elif order is None:
        how, guide = "cell", cell.contiguous()
    else:
        how, guide = "order", order
    cut = tiles(L, d, q.dtype)
    options = {
        "HOW": how,
        "D": d,
        "ROWS": cut.rows,
        "COLUMNS": cut.columns,
        "num_warps": cut.num_warps,
        "num_stages": cut.num_stages,
        "enable_fp_fusion": True,
    }
    num_blocks = B * h * (triton.cdiv(num_3d, cut.rows) + triton.cdiv(L - num_3d, cut.rows))
    return _Plan(q, k, v, guide, (*q.stride()[:3], h, L, num_3d), options, num_blocks)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cell: Tensor,
    order: Tensor | None,
    num_3d: int,
    global_2d: bool,
    global_3d: bool,
) -> tuple[Tensor, Tensor]:
    """The result [B, h, L, d] and, for `backward`, the logarithm to base 2 of each row's sum [B, h, L]."""
    B, h, L, d = q.shape
    out = q.new_empty(B, L, h, d)
    lse = q.new_empty(B, h, L, dtype=torch.float32)
    if q.numel() > 0:
        plan = _plan(q, k, v, cell, order, num_3d, global_2d and global_3d)
        with torch.cuda.device_of(q):
            _forward_kernel[(plan.num_blocks,)](
                plan.q,
                plan.k,
                plan.v,
                plan.guide,
                out,
                lse,
                *plan.sizes,
                GLOBAL_2D=global_2d,
                GLOBAL_3D=global_3d,
                **plan.options,
            )
    return out.transpose_(1, 2), lse


def backward(
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
    """The gradients of q, k and v, [B, h, L, d] each.

    Of few tokens in one launch, whose programs each compute `delta` for themselves. Of many that would be once a tile,
    so there the queries' gradients are first and leave it to the keys'.
    """
    B, h, L, d = q.shape
    dq, dk, dv = (q.new_empty(B, L, h, d) for _ in range(3))
    if q.numel() > 0:
        plan = _plan(q, k, v, cell, order, num_3d, global_2d and global_3d)
        grad, out = grad.transpose(1, 2).contiguous(), out.transpose(1, 2).contiguous()
        delta = torch.empty_like(lse)
        with torch.cuda.device_of(q):
            for part in ("q", "kv") if L > FEW_TOKENS else ("both",):
                _backward_kernel[(plan.num_blocks * (2 if part == "both" else 1),)](
                    grad,
                    plan.q,
                    plan.k,
                    plan.v,
                    out,
                    lse,
                    plan.guide,
                    delta,
                    dq,
                    dk,
                    dv,
                    *plan.sizes,
                    GLOBAL_2D=global_2d,
                    GLOBAL_3D=global_3d,
                    PART=part,
                    **plan.options,
                )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
