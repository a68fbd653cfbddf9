"""The Triton kernels of local_aligned_attention, run on the CPU by Triton's interpreter, through the public function.

Not collected by itself: the interpreter must be chosen before Triton is imported, so a test of
test_local_aligned_attention_triton.py runs this file in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from jointmae.ops import align, local_aligned_attention, reference
from jointmae.ops import local_aligned_attention_triton as kernels
from tests.test_local_aligned_attention import LOCAL, SCHEMES, check_close, tokens

op: Any = import_module("jointmae.ops.local_aligned_attention")
torch.set_num_threads(1)
library = torch.library.Library("jointmae", "IMPL")
for name in ("order", "forward", "backward"):
    library.impl(f"local_aligned_attention_{name}", getattr(op, f"_{name}_cuda"), "CPU")


def _dot(self: Any, a: Any, b: Any, sums: Any, *_: Any) -> Any:
    """The interpreter's own takes the bits of bfloat16 for integers (3.6 to 3.9)."""

    def values(operand: Any) -> Any:
        if operand.dtype.scalar == tl.bfloat16:
            return (operand.data.astype(np.uint32) << 16).view(np.float32)
        return operand.data

    return interpreter.TensorHandle(
        np.matmul(values(a), values(b), dtype=sums.data.dtype) + sums.data, sums.dtype.scalar
    )


_patch_tensor = interpreter._patch_lang_tensor


def _patch_index(tensor: Any, scope: Any) -> None:
    """What is in Triton 3.6 needs a NumPy before 2.4."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", _patch_index)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
    monkeypatch.setattr(op, "_for_triton", lambda tensor: True)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the sizes of tiles, and whether tokens are few (cells compared, one launch) or many (sorted, two)."""

    def set_(rows: int = 16, columns: int = 16, few: bool = True) -> None:
        monkeypatch.setattr(kernels, "tiles", lambda L, d, dtype: kernels.Tiles(rows, columns, 4, 1))
        for module in (op, kernels):
            monkeypatch.setattr(module, "FEW_TOKENS", 10**6 if few else 0)

    return set_


def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, by: Any = local_aligned_attention) -> list[Tensor]:
    """The result and the gradients of q, k and v for a fixed gradient of the result."""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = by(*leaves, *args)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(q.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out.dtype))]


def expect(results: list[Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any) -> None:
    """Near to the reference in float64."""
    wanted = attend(q.double(), k.double(), v.double(), *args, by=reference.local_aligned_attention)
    for result, value in zip(results, wanted, strict=True):
        assert result.dtype == q.dtype
        if q.dtype == torch.float32:
            torch.testing.assert_close(
                result.double(), value, rtol=1e-5, atol=1e-5
            )  # sums in float32, d terms and more
        else:
            error = (result.double() - value).norm() / value.norm()
            assert error < 2 * torch.finfo(q.dtype).eps  # products of two rounded factors, of either sign


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_over_several_tiles(cut, scheme, few):
    """Two tiles or more of each modality in both roles, full and ragged."""
    q, k, v, cell = tokens(1, 1, 43, 16, torch.device("cpu"))
    cut(few=few)
    expect(attend(q, k, v, cell, 18, scheme), q, k, v, cell, 18, scheme)


@pytest.mark.parametrize(
    "wrong", ["-1 equals -1", "no cell is met", "all are met", "own modality by cell", "transposed"]
)
def test_a_wrong_mask_would_be_seen(monkeypatch, wrong):
    """The inputs of the test above tell the right mask from others."""
    right = reference.alignment_mask

    def mask(cell: Tensor, num_3d: int, scheme: tuple[str, str]) -> Tensor:
        own = right(torch.full_like(cell, -1), num_3d, LOCAL)
        equal = cell[:, :, None] == cell[:, None, :]
        return {
            "-1 equals -1": right(cell + 1, num_3d, scheme),
            "no cell is met": own,
            "all are met": torch.ones_like(own),
            "own modality by cell": right(cell, num_3d, scheme) & (equal | torch.eye(43, dtype=torch.bool)),
            "transposed": right(cell, num_3d, ("local", "global")).transpose(1, 2),
        }[wrong]

    scheme = ("local", "global") if wrong == "transposed" else LOCAL
    q, k, v, cell = tokens(1, 1, 43, 16, torch.device("cpu"))
    results = attend(q.double(), k.double(), v.double(), cell, 18, scheme, by=reference.local_aligned_attention)
    expect([result.float() for result in results], q, k, v, cell, 18, scheme)
    monkeypatch.setattr(reference, "alignment_mask", mask)
    with pytest.raises(AssertionError, match="not close"):
        expect([result.float() for result in results], q, k, v, cell, 18, scheme)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("d", [16, 32, 48, 64, 96, 128])
def test_channels(dtype, d):
    """With the tiles that a GPU would get."""
    q, k, v, cell = tokens(1, 1, 21, d, torch.device("cpu"), dtype)
    expect(attend(q, k, v, cell, 8, LOCAL), q, k, v, cell, 8, LOCAL)


@pytest.mark.parametrize(("L", "num_3d"), [(65, 16), (150, 50)])
def test_sizes_of_the_model(L, num_3d):
    """Visible tokens of the paper's encoder; and many, sorted, with the tiles that a GPU would get."""
    q, k, v, cell = tokens(1, 1, L, 64, torch.device("cpu"), torch.bfloat16)
    cell = torch.where(cell < 0, cell, torch.arange(L) % 49).int()
    expect(attend(q, k, v, cell, num_3d, LOCAL), q, k, v, cell, num_3d, LOCAL)


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
@pytest.mark.parametrize(("L", "num_3d"), [(1, 0), (1, 1), (2, 1), (5, 0), (5, 5), (17, 16), (17, 1)])
def test_small_sizes(cut, L, num_3d, few):
    q, k, v, cell = tokens(1, 1, L, 16, torch.device("cpu"))
    cut(few=few)
    expect(attend(q, k, v, cell, num_3d, LOCAL), q, k, v, cell, num_3d, LOCAL)


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
@pytest.mark.parametrize("kind", ["all missing", "all equal", "other negatives", "far apart"])
def test_cells(cut, kind, few):
    q, k, v, cell = tokens(1, 1, 36, 16, torch.device("cpu"))
    choices = {
        "all missing": torch.full_like(cell, -1),
        "all equal": torch.zeros_like(cell),
        "other negatives": torch.where(cell == 0, -7, cell),
        "far apart": torch.where(cell == 0, 2**31 - 1, torch.where(cell < 0, -(2**31), cell)),
    }
    cut(few=few)
    expect(attend(q, k, v, choices[kind].int(), 17, LOCAL), q, k, v, choices[kind].int(), 17, LOCAL)


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
def test_samples_heads_and_strides(cut, few):
    """As a linear layer gives q, k and v; each sample has its own cells. And with strides that differ."""
    q, k, v, cell = tokens(2, 2, 7, 16, torch.device("cpu"))
    cut(few=few)
    results = attend(q, k, v, cell, 4, LOCAL)
    expect(results, q, k, v, cell, 4, LOCAL)
    assert results[0].transpose(1, 2).is_contiguous()  # the next layer takes it as it is
    strided = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    for inputs in (strided, (q, k, v.mT.contiguous().mT)):
        assert all(map(torch.equal, attend(*inputs, cell, 4, LOCAL), results))


def test_order(cut):
    """As a stable sort, with the interval of equal cells in the other modality."""
    cell = torch.randint(-3, 9, (3, 70), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for num_3d in (1, 33, 69):
        places, begin, end = kernels.order(cell, num_3d).long().unbind(1)
        wanted = [cell[:, :num_3d].argsort(stable=True), num_3d + cell[:, num_3d:].argsort(stable=True)]
        assert torch.equal(places, torch.cat(wanted, dim=1))
        by_place = cell.gather(1, places)
        is_3d = torch.arange(70) < num_3d
        met = (torch.arange(70) >= begin[..., None]) & (torch.arange(70) < end[..., None])
        equal = (by_place[:, :, None] == by_place[:, None]) & (by_place >= 0)[..., None]
        assert torch.equal(met, equal & (is_3d[:, None] ^ is_3d))


@pytest.mark.parametrize("half", ["low", "high"])
def test_other_cells_are_never_read(cut, half):
    """NaN in what a block does not meet would spread even with a probability of 0, so it is not looked at.

    Blocks of 16 rows, by cell: 3D tokens in cells 0..15 and 16..31, and 2D tokens as well; one of those is spoilt.
    """
    cell = torch.arange(32, dtype=torch.int32).repeat(1, 2)
    cell = cell[:, torch.cat([torch.randperm(32), 32 + torch.randperm(32)])]
    is_3d, is_clean = torch.arange(64) < 32, (cell[0] < 16) ^ (half == "low")
    q, k, v, _ = tokens(1, 1, 64, 16, torch.device("cpu"))
    cut(few=False)
    rest = (cell, kernels.order(cell, 32), 32, False, False)
    out, lse = kernels.forward(q, k, v, *rest)
    grads = kernels.backward(q, q, k, v, out, lse, *rest)

    nan = torch.where(is_3d | is_clean, 0, torch.nan)  # [L]
    spoilt, _ = kernels.forward(q + nan[:, None], k + nan[:, None], v + nan[:, None], *rest)
    assert torch.equal(spoilt[:, :, is_3d & is_clean], out[:, :, is_3d & is_clean])
    assert torch.isnan(spoilt[:, :, ~(is_3d & is_clean)]).all()
    dq, _, _ = kernels.backward(q, q, k + nan[:, None], v + nan[:, None], out, lse, *rest)
    assert torch.equal(dq[:, :, is_3d & is_clean], grads[0][:, :, is_3d & is_clean])
    assert torch.isnan(dq[:, :, ~(is_3d & is_clean)]).all()
    for spoilt, wanted in zip(kernels.backward(q, q, k, v, out, lse + nan, *rest)[1:], grads[1:], strict=True):
        assert torch.equal(spoilt[:, :, is_3d & is_clean], wanted[:, :, is_3d & is_clean])
        assert torch.isnan(spoilt[:, :, ~(is_3d & is_clean)]).all()


def test_a_nan_stays_in_its_query(cut):
    q, k, v, cell = tokens(1, 1, 20, 16, torch.device("cpu"))
    q[0, 0, 2] = torch.nan
    cut()
    result = local_aligned_attention(q, k, v, cell, 9)
    assert torch.isnan(result[0, 0]).all(-1).nonzero().flatten().tolist() == [2]


def test_large_scores(cut):
    """Scores of 10^4: nothing overflows, and the softmax picks one key."""
    q, k, v, cell = tokens(1, 1, 20, 16, torch.device("cpu"))
    cut()
    results = attend(300 * q, 300 * k, v, cell, 9, LOCAL)
    assert all(torch.isfinite(result).all() for result in results)
    torch.testing.assert_close(
        results[0], reference.local_aligned_attention(300 * q, 300 * k, v, cell, 9, LOCAL), rtol=0.02, atol=0.02
    )  # float32 scores of 10^4 are known to 10^-3


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
@pytest.mark.parametrize("scheme", [LOCAL, ("global", "global")])
def test_ids_alignment_and_a_second_run_give_the_same_bits(cut, scheme, few):
    q, k, v, cell = tokens(1, 1, 24, 16, torch.device("cpu"))
    cut(few=few)
    alignment = align(cell, 13, scheme)
    assert alignment.bias is None
    assert (alignment.order is None) == (few or scheme != LOCAL)
    wanted = attend(q, k, v, cell, 13, scheme)
    for args in ((alignment,), (cell, 13, scheme), (alignment._replace(order=None),)):
        assert all(map(torch.equal, attend(q, k, v, *args), wanted))


@pytest.mark.parametrize(("dtype", "d"), [(torch.float64, 16), (torch.float32, 24), (torch.float32, 256)])
def test_pytorch_does_what_the_kernels_are_not_made_for(monkeypatch, dtype, d):
    """Also when the Alignment has no bias, since it was made for the kernels."""
    monkeypatch.setattr(kernels, "forward", None)
    q, k, v, cell = tokens(1, 2, 20, d, torch.device("cpu"), dtype)
    alignment = align(cell, 9)
    assert alignment.bias is None
    result = local_aligned_attention(q, k, v, alignment)
    check_close(result, reference.local_aligned_attention(q, k, v, cell, 9, LOCAL))


def test_empty_batch():
    for L in (6, 200):
        q, k, v, cell = tokens(0, 2, L, 16, torch.device("cpu"))
        assert [result.shape for result in attend(q, k, v, cell, 2, LOCAL)] == [(0, 2, L, 16)] * 4


def test_autocast():
    """As PyTorch's attention: computed and given back in autocast's dtype, the gradient in the input's."""
    q, k, v, cell = tokens(1, 1, 20, 16, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = attend(q, k, v, align(cell, 9))
    assert [result.dtype for result in results] == [torch.bfloat16, *[torch.float32] * 3]
    expect([result.bfloat16() for result in results], *(x.bfloat16() for x in (q, k, v)), cell, 9, LOCAL)


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
def test_opcheck(cut, few):
    q, k, v, cell = tokens(1, 1, 6, 16, torch.device("cpu"))
    cut(few=few)
    ops = torch.ops.jointmae
    order = None if few else ops.local_aligned_attention_order(cell, 3)
    args = (cell, order, 3, False, True)
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    torch.library.opcheck(ops.local_aligned_attention_forward, (*leaves, *args))
    q, k, v = (tensor.detach() for tensor in leaves)
    out, lse = ops.local_aligned_attention_forward(q, k, v, *args)
    torch.library.opcheck(ops.local_aligned_attention_backward, (q, q, k, v, out, lse, *args))
    torch.library.opcheck(ops.local_aligned_attention_order, (cell, 3))


@pytest.mark.parametrize("few", [True, False], ids=["by cell", "by order"])
def test_compile(cut, few):
    """One graph of align, two attentions on it, and their gradients."""
    q, k, v, cell = tokens(1, 1, 20, 16, torch.device("cpu"))
    cut(few=few)

    def blocks(q: Tensor, cell: Tensor) -> Tensor:
        alignment = align(cell, 9)
        for _ in range(2):
            q = q + local_aligned_attention(q, k, v, alignment)
        return q.square().sum()

    grads = []
    for function in (blocks, torch.compile(blocks, fullgraph=True, backend="aot_eager")):
        leaf = q.clone().requires_grad_()
        function(leaf, cell).backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


def test_no_second_derivative(cut):
    q, k, v, cell = tokens(1, 1, 6, 16, torch.device("cpu"))
    cut()
    q.requires_grad_()
    (grad,) = torch.autograd.grad(local_aligned_attention(q, k, v, cell, 3).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="local_aligned_attention: the kernels have no second derivative"):
        grad.sum().backward()
