from __future__ import annotations

import itertools
import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from jointmae.ops import Alignment, align, local_aligned_attention, native, reference
from tests.op_cases import check_concurrent, check_fork, check_same_bits, equal, isa_levels

op: Any = import_module("jointmae.ops.local_aligned_attention")
needs_kernels = pytest.mark.skipif(native.kernels is None, reason="needs native kernels")

SCHEMES = list(itertools.product(("local", "global"), repeat=2))
LOCAL = ("local", "local")


@pytest.fixture(params=["kernels", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With whatever kernels there are, and as if there were none."""
    if request.param == "torch":
        monkeypatch.setattr(op, "_HAS_TRITON", False)
        monkeypatch.setattr(op, "kernels", None)
    return request.param


def tokens(B: int, h: int, L: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32):
    """q, k, v [B, h, L, d] and cells [B, L] of which one in five is -1."""
    torch.manual_seed(L)
    q, k, v = (torch.randn(B, h, L, d, device=device).to(dtype) for _ in range(3))
    return q, k, v, torch.randint(-1, 4, (B, L), dtype=torch.int32, device=device)


def check_close(result: Tensor, wanted: Tensor) -> None:
    """In half precision PyTorch rounds the probabilities too: errors of two units relative to values of about 1."""
    half = result.dtype in (torch.float16, torch.bfloat16)
    eps = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result, wanted, **({"rtol": 2 * eps, "atol": 2 * eps} if half else {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("B", "h", "L", "d", "num_3d"),
    [(3, 2, 20, 24, 7), (1, 1, 1, 1, 1), (1, 6, 81, 64, 32), (2, 1, 5, 3, 0), (2, 1, 5, 3, 5)],
)
def test_equals_reference(device, path, dtype, scheme, B, h, L, d, num_3d):
    q, k, v, cell = tokens(B, h, L, d, device, dtype)
    result = local_aligned_attention(q, k, v, cell, num_3d, scheme)
    assert result.dtype == dtype
    check_close(result, reference.local_aligned_attention(q, k, v, cell, num_3d, scheme))


def test_by_hand(device, path):
    """Two 3D tokens in cells 5 and -1, two 2D tokens in cells 5 and -1; equal scores, so a mean of the values read."""
    q = torch.zeros(1, 1, 4, 1, device=device)
    v = torch.tensor([1.0, 2.0, 4.0, 8.0], device=device).view(1, 1, 4, 1)
    cell = torch.tensor([[5, -1, 5, -1]], dtype=torch.int32, device=device)
    wanted = {
        ("local", "local"): [7 / 3, 1.5, 13 / 3, 6.0],  # -1 does not match -1
        ("global", "local"): [7 / 3, 1.5, 15 / 4, 15 / 4],  # 2D queries read all 3D keys
        ("local", "global"): [15 / 4, 15 / 4, 13 / 3, 6.0],  # 3D queries read all 2D keys
        ("global", "global"): [15 / 4] * 4,
    }
    for scheme, values in wanted.items():
        result = local_aligned_attention(q, q, v, cell, 2, scheme)
        torch.testing.assert_close(result.flatten(), torch.tensor(values, device=device))


def test_all_cells_missing(device, path):
    """Without a cell in common the modalities attend as if they were alone."""
    q, k, v, cell = tokens(2, 3, 12, 8, device)
    result = local_aligned_attention(q, k, v, torch.full_like(cell, -1), 5)
    for part in (slice(0, 5), slice(5, 12)):
        alone = torch.nn.functional.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part])
        torch.testing.assert_close(result[:, :, part], alone)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_alignment_gives_the_same_bits_as_ids(device, path, scheme):
    q, k, v, cell = tokens(2, 3, 30, 16, device)
    alignment = align(cell, 11, scheme)
    if device.type == "cpu":
        ordered = path == "kernels" and native.kernels is not None
        some = scheme != ("global", "global")
        assert (alignment.bias is not None, alignment.order is not None) == (some and not ordered, some and ordered)
    assert torch.equal(local_aligned_attention(q, k, v, alignment), local_aligned_attention(q, k, v, cell, 11, scheme))


def test_permutation_equivariance(device, path):
    """Reordering the tokens inside a modality reorders the result."""
    q, k, v, cell = tokens(2, 2, 24, 8, device)
    order = torch.cat([torch.randperm(9), 9 + torch.randperm(15)]).to(device)
    result = local_aligned_attention(q, k, v, cell, 9)
    permuted = local_aligned_attention(q[:, :, order], k[:, :, order], v[:, :, order], cell[:, order], 9)
    torch.testing.assert_close(permuted, result[:, :, order])


def test_empty_batch(device, path):
    q, k, v, cell = tokens(0, 2, 6, 4, device)
    assert local_aligned_attention(q, k, v, cell, 2).shape == (0, 2, 6, 4)


def test_not_contiguous(device, path):
    """As a linear layer gives q, k and v: [B, L, 3, h, d], permuted."""
    q, k, v, cell = tokens(2, 3, 10, 8, device)
    strided = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    assert not strided[0].is_contiguous()
    result = local_aligned_attention(*strided, cell, 4)
    torch.testing.assert_close(result, local_aligned_attention(q, k, v, cell, 4))


def test_autocast(device, path):
    q, k, v, cell = tokens(2, 2, 10, 8, device)
    expected = reference.local_aligned_attention(q, k, v, cell, 4, LOCAL)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        alignment = align(cell, 4)
        assert alignment.bias is None or alignment.bias.dtype == torch.bfloat16  # cast once for all blocks
        result = local_aligned_attention(q, k, v, alignment)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.02, atol=0.03)  # bfloat16 has 8 bits


def test_bias_of_another_dtype(device, path):
    q, k, v, cell = tokens(2, 2, 10, 8, device, torch.bfloat16)
    alignment = align(cell, 4)
    result = local_aligned_attention(q, k, v, alignment)
    check_close(result, reference.local_aligned_attention(q, k, v, cell, 4, LOCAL))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(device, scheme):
    q, k, v, cell = tokens(2, 2, 7, 3, device, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *qkv: local_aligned_attention(*qkv, cell, 3, scheme), inputs)


def test_masked_keys_get_no_gradient(device, path):
    q, k, v, _ = tokens(1, 1, 4, 2, device)
    k.requires_grad_(), v.requires_grad_()
    cell = torch.tensor([[0, 1, 0, -1]], dtype=torch.int32, device=device)
    local_aligned_attention(q, k, v, cell, 2)[:, :, 0].sum().backward()  # a 3D query in cell 0 reads tokens 0, 1 and 2
    assert (v.grad[0, 0, :3] != 0).all()
    assert (v.grad[0, 0, 3] == 0).all() and (k.grad[0, 0, 3] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_opcheck(device, scheme):
    q, k, v, cell = tokens(2, 2, 9, 4, device)
    q.requires_grad_()
    bias = align(cell, 4, scheme).bias
    args = (q, k, v, cell, bias, 4, *(scope == "global" for scope in scheme))
    torch.library.opcheck(torch.ops.jointmae.local_aligned_attention, args)


@pytest.mark.parametrize("scheme", [LOCAL, ("global", "global")])
def test_compile(device, scheme):
    """Ids and an Alignment, made inside the graph or outside."""
    q, k, v, cell = tokens(2, 2, 12, 8, device)

    def blocks(q: Tensor, alignment: Alignment) -> Tensor:
        for _ in range(2):
            q = q + local_aligned_attention(q, k, v, alignment)
        return q.square().sum()

    def whole(q: Tensor, cell: Tensor) -> Tensor:
        return blocks(q, align(cell, 5, scheme))

    grads = []
    for call, argument in ((blocks, align(cell, 5, scheme)), (whole, cell)):
        for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager")):
            leaf = q.clone().requires_grad_()
            function(leaf, argument).backward()
            grads.append(leaf.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


def cells(kind: str, B: int, L: int, num_3d: int) -> Tensor:
    """Few or many tokens of the other modality for each: the paths of the kernels."""
    generator = torch.Generator().manual_seed(L)
    cell = torch.randint(-1, max(L, 2), (B, L), generator=generator, dtype=torch.int32)
    if kind == "equal":
        cell[:] = 3
    elif kind == "missing":
        cell[:] = -(2**31)  # whatever is below 0 equals none
    elif kind == "clusters":  # of many tokens each, beside a few alone
        cell[:, ::2] = torch.randint(0, 3, cell[:, ::2].shape, generator=generator, dtype=torch.int32) * (2**30 - 1)
    elif kind == "one":  # one query reads very many, the others none
        cell[:, :num_3d] = -1
        cell[:, num_3d:] = 2**31 - 1
        cell[:, : min(1, num_3d)] = 2**31 - 1
    return cell


KINDS = ("spread", "equal", "missing", "clusters", "one")
# L, num_3d: around the vectors (4, 8, 16 keys), tiles (6 rows), blocks (64), with one and two keys beyond a vector
LENGTHS = (
    *((1, 0), (1, 1), (2, 1), (7, 3), (20, 8), (33, 16), (50, 17), (65, 16), (66, 2), (81, 32)),
    *((130, 66), (133, 0), (133, 133), (192, 64), (195, 130)),
)


def with_gradients(call: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> list[Tensor]:
    """The result and the gradients of q, k and v for a fixed gradient of the result."""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = call(*leaves, *args)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return [out.detach(), *torch.autograd.grad(out, leaves, weights.to(out))]


def check_against_float64(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> None:
    """The result and the gradients, for values of about 1.

    Each is a sum of up to L products, whose errors add up like its square root. In half precision the gradients start
    from what was rounded, q, k, v and the result, and all are rounded once more.
    """
    results = with_gradients(local_aligned_attention, q, k, v, *args)
    wanted = with_gradients(reference.local_aligned_attention, *(tensor.double() for tensor in (q, k, v)), *args)
    for result, exact in zip(results, wanted, strict=True):
        assert result.dtype == q.dtype and result.shape == exact.shape
        error = (result.double() - exact).abs().max()
        assert error <= (4 + q.shape[2] ** 0.5) * torch.finfo(q.dtype).eps * exact.abs().max().clamp(min=1)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("L", "num_3d"), LENGTHS)
def test_kernels_and_gradients(L, num_3d, kind):
    q, k, v, _ = tokens(2, 2, L, 16, torch.device("cpu"))
    for scheme in SCHEMES:
        check_against_float64(q, k, v, cells(kind, 2, L, num_3d), num_3d, scheme)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 3, 8, 16, 20, 32, 48, 64, 96, 100, 128])
def test_kernels_of_every_width(d, dtype):
    q, k, v, _ = tokens(1, 2, 37, d, torch.device("cpu"), dtype)
    for kind in ("spread", "equal"):
        check_against_float64(q, k, v, cells(kind, 1, 37, 20), 20, LOCAL)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_round_half_precision(dtype):
    """All numbers of 16 bits, and means of two of them: each weighs exactly 1 or 1/2. To the nearest, ties to even."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    other = every[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    v = torch.stack([every, other])[None, None]  # [1, 1, 2, 65536]
    zeros = torch.zeros_like(v)
    alone = local_aligned_attention(zeros, zeros, v, torch.full((1, 2), -1, dtype=torch.int32), 1)
    assert torch.equal(alone.nan_to_num(), v.nan_to_num()) and torch.equal(alone.isnan(), v.isnan())
    both = local_aligned_attention(zeros, zeros, v, torch.zeros(1, 2, dtype=torch.int32), 0)[0, 0, 0]
    wanted = ((every.float() + other.float()) * 0.5).to(dtype)
    assert torch.equal(both.nan_to_num(), wanted.nan_to_num()) and torch.equal(both.isnan(), wanted.isnan())


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_many_tokens(kind):
    """Several blocks of queries, of keys and of what is read of the other modality."""
    q, k, v, _ = tokens(1, 2, 700, 64, torch.device("cpu"))
    for scheme in (LOCAL, ("global", "local")):
        check_against_float64(q, k, v, cells(kind, 1, 700, 504), 504, scheme)


@needs_kernels
def test_kernels_of_very_many_tokens():
    """Rows of scores so long that fewer than a tile's fit into the cache."""
    q, k, v, _ = tokens(1, 1, 9000, 8, torch.device("cpu"))
    cell = cells("spread", 1, 9000, 4000)
    result = local_aligned_attention(q, k, v, cell, 4000)
    some = torch.tensor([0, 1, 3999, 4000, 7777, 8999])
    valid = ((cell[0, some, None] == cell[0]) & (cell[0] >= 0)) | (
        (some[:, None] < 4000) == (torch.arange(9000) < 4000)
    )
    scores = q[0, 0, some].double() @ k[0, 0].double().T / 8**0.5
    wanted = scores.masked_fill(~valid, -torch.inf).softmax(-1) @ v[0, 0].double()
    torch.testing.assert_close(result[0, 0, some].double(), wanted, rtol=1e-5, atol=1e-6)


@needs_kernels
def test_kernels_of_any_strides():
    """Of each tensor its own, and gradients that are expanded or transposed."""
    q, k, v, cell = tokens(2, 3, 30, 16, torch.device("cpu"))
    wanted = with_gradients(local_aligned_attention, q, k, v, cell, 11)

    def padded(tensor: Tensor) -> Tensor:
        return torch.cat([torch.full_like(tensor, math.nan), tensor], dim=2)[:, :, 30:]

    strided = (
        padded(q),
        k.transpose(0, 3).contiguous().transpose(0, 3),
        v.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert equal(wanted, with_gradients(local_aligned_attention, *strided, cell, 11))
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    grads = torch.autograd.grad(local_aligned_attention(*leaves, cell, 11).sum(), leaves)  # of stride 0
    out = local_aligned_attention(*leaves, cell, 11)
    ones = torch.ones(16, 2, 3, 30).permute(1, 2, 3, 0)
    assert equal(grads, torch.autograd.grad(out, leaves, ones))


@needs_kernels
def test_order():
    """By modality, cell and number; with the places of the same cell in the other modality."""
    cell = torch.tensor([[7, -1, 5, 7, 5, 7, -2, 5], [0] * 8, [-1] * 8, [8, 7, 6, 5, 4, 3, 2, 1]], dtype=torch.int32)
    order = torch.ops.jointmae.local_aligned_attention_order(cell, 3)
    assert order[0].tolist() == [[1, 2, 0, 6, 4, 7, 3, 5], [4, 4, 6, 0, 1, 1, 2, 2], [4, 6, 8, 0, 2, 2, 3, 3]]
    assert order[1].tolist() == [[*range(8)], [3] * 3 + [0] * 5, [8] * 3 + [3] * 5]
    assert (order[2, 1] == order[2, 2]).all()
    assert order[3, 0].tolist() == [2, 1, 0, 7, 6, 5, 4, 3]
    assert (order[3, 1] == order[3, 2]).all()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_scores(dtype):
    """Scores of up to 1e4: the highest wins, nothing overflows."""
    q, k, v, cell = tokens(2, 2, 40, 16, torch.device("cpu"))
    q, k, v = (q * 70).to(dtype), (k * 70).to(dtype), v.to(dtype)
    out, *grads = with_gradients(local_aligned_attention, q, k, v, cell, 15)
    check_close(out, reference.local_aligned_attention(q, k, v, cell, 15, LOCAL))
    assert all(grad.isfinite().all() for grad in grads)
    if dtype == torch.float32:
        wanted = with_gradients(reference.local_aligned_attention, q.double(), k.double(), v.double(), cell, 15, LOCAL)
        for grad, exact in zip(grads, wanted[1:], strict=True):  # scores of 1e4 are exact to 1e-3 only, and weights so
            assert (grad.double() - exact).norm() <= 1e-2 * exact.norm()


@needs_kernels
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_spreads_as_it_should(where):
    """To the queries that may read it; nobody of the others gets one who is not of the same modality or cell."""
    q, k, v, _ = tokens(1, 1, 40, 8, torch.device("cpu"))
    cell = torch.arange(40, dtype=torch.int32)[None] % 20
    {"q": q, "k": k, "v": v}[where][0, 0, 5] = math.nan
    found = local_aligned_attention(q, k, v, cell, 20).isnan()[0, 0].all(-1).nonzero().flatten().tolist()
    assert found == ([5] if where == "q" else [*range(20), 25])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [LOCAL, ("global", "local"), ("global", "global")])
def test_opcheck_of_the_kernels(scheme, dtype):
    q, k, v, cell = tokens(2, 2, 9, 4, torch.device("cpu"), dtype)
    scopes = [scope == "global" for scope in scheme]
    ops = torch.ops.jointmae
    order = align(cell, 4, scheme).order
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    torch.library.opcheck(ops.local_aligned_attention_forward, (*leaves, cell, order, 4, *scopes))
    out, lse = ops.local_aligned_attention_forward(q, k, v, cell, order, 4, *scopes)
    torch.library.opcheck(ops.local_aligned_attention_backward, (v, q, k, v, out, lse, cell, order, 4, *scopes))
    torch.library.opcheck(ops.local_aligned_attention_order, (cell, 4))
    made = ops.local_aligned_attention_forward(q, k, v, cell, None, 4, *scopes)  # makes its own order
    assert torch.equal(made[0], out)


@needs_kernels
def test_no_second_derivative():
    q, k, v, cell = tokens(1, 1, 5, 4, torch.device("cpu"))
    (grad,) = torch.autograd.grad(
        local_aligned_attention(q.requires_grad_(), k, v, cell, 2).sum(), q, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="the kernels have no second derivative; float64 tensors have"):
        grad.sum().backward()


@needs_kernels
@pytest.mark.parametrize("level", isa_levels())
def test_every_level(run_python, level):
    """The tests of the kernels above, at an instruction set."""
    code = f"import pytest; raise SystemExit(pytest.main(['-q', {__file__!r}, '-k', 'test_kernels and not very_many']))"
    done = run_python(code, JOINTMAE_ISA=level)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


def call_of(L: int, d: int, device: torch.device) -> Any:
    q, k, v, cell = tokens(4, 6, L, d, device)
    return lambda: with_gradients(local_aligned_attention, q, k, v, cell, L // 3)


@pytest.mark.parametrize(("L", "d"), [(81, 64), (20, 16)])
def test_same_bits(device, num_threads, L, d):
    check_same_bits(call_of(L, d, device), num_threads)


@needs_kernels
def test_called_by_many():
    check_concurrent(call_of(33, 16, torch.device("cpu")))
    check_fork(call_of(33, 16, torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(2, 6, 4)}, ValueError, r"q must have shape \[B, h, L, d\], got \[2, 6, 4\]"),
        ({"k": torch.zeros(2, 3, 7, 4)}, ValueError, r"k must have the shape of q, \[2, 3, 6, 4\], got \[2, 3, 7, 4\]"),
        (
            {"v": torch.zeros(2, 3, 6, 4).half()},
            TypeError,
            r"v must have the dtype of q, torch.float32, got torch.float16",
        ),
        ({"cell": torch.zeros(2, 6)}, TypeError, r"cell must be int32, got torch.float32"),
        ({"cell": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, r"cell must be int32, got torch.int64"),
        ({"cell": torch.zeros(12, dtype=torch.int32)}, ValueError, r"cell must have shape \[B, L\], got \[12\]"),
        (
            {"cell": torch.zeros(2, 7, dtype=torch.int32)},
            ValueError,
            r"cell must have shape \[B=2, L=6\], got \[2, 7\]",
        ),
        ({"num_3d": 7}, ValueError, r"num_3d must be in \[0, L=6\], got 7"),
        ({"num_3d": -1}, ValueError, r"num_3d must be in \[0, L=6\], got -1"),
        ({"num_3d": None}, ValueError, r"num_3d is needed with cell ids, got None"),
        (
            {"scheme": ("local", "none")},
            ValueError,
            r"scheme must be two of 'local' and 'global', got \('local', 'none'\)",
        ),
        (
            {"cell": align(torch.zeros(2, 6, dtype=torch.int32), 2)},
            ValueError,
            r"num_3d and scheme are part of the Align",
        ),
    ],
)
def test_errors(change, error, message):
    q, k, v, cell = tokens(2, 3, 6, 4, torch.device("cpu"))
    inputs = {"q": q, "k": k, "v": v, "cell": cell, "num_3d": 2}
    with pytest.raises(error, match=f"local_aligned_attention: {message}"):
        local_aligned_attention(**(inputs | change))


def test_nan_stays_in_its_row(device, path):
    """A NaN in a query reaches that query's output alone."""
    q, k, v, cell = tokens(1, 1, 6, 4, device)
    q[0, 0, 2] = math.nan
    result = local_aligned_attention(q, k, v, cell, 3)
    assert torch.isnan(result[0, 0]).all(-1).nonzero().flatten().tolist() == [2]
