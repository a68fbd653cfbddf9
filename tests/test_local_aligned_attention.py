from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from jointmae.ops import Alignment, align, local_aligned_attention, reference
from tests.op_cases import check_same_bits

SCHEMES = list(itertools.product(("local", "global"), repeat=2))
LOCAL = ("local", "local")


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
def test_equals_reference(device, dtype, scheme, B, h, L, d, num_3d):
    q, k, v, cell = tokens(B, h, L, d, device, dtype)
    result = local_aligned_attention(q, k, v, cell, num_3d, scheme)
    assert result.dtype == dtype
    check_close(result, reference.local_aligned_attention(q, k, v, cell, num_3d, scheme))


def test_by_hand(device):
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


def test_all_cells_missing(device):
    """Without a cell in common the modalities attend as if they were alone."""
    q, k, v, cell = tokens(2, 3, 12, 8, device)
    result = local_aligned_attention(q, k, v, torch.full_like(cell, -1), 5)
    for part in (slice(0, 5), slice(5, 12)):
        alone = torch.nn.functional.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part])
        torch.testing.assert_close(result[:, :, part], alone)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_alignment_gives_the_same_bits_as_ids(device, scheme):
    q, k, v, cell = tokens(2, 3, 30, 16, device)
    alignment = align(cell, 11, scheme)
    if device.type == "cpu":
        assert (alignment.bias is None) == (scheme == ("global", "global"))
    assert torch.equal(local_aligned_attention(q, k, v, alignment), local_aligned_attention(q, k, v, cell, 11, scheme))


def test_permutation_equivariance(device):
    """Reordering the tokens inside a modality reorders the result."""
    q, k, v, cell = tokens(2, 2, 24, 8, device)
    order = torch.cat([torch.randperm(9), 9 + torch.randperm(15)]).to(device)
    result = local_aligned_attention(q, k, v, cell, 9)
    permuted = local_aligned_attention(q[:, :, order], k[:, :, order], v[:, :, order], cell[:, order], 9)
    torch.testing.assert_close(permuted, result[:, :, order])


def test_empty_batch(device):
    q, k, v, cell = tokens(0, 2, 6, 4, device)
    assert local_aligned_attention(q, k, v, cell, 2).shape == (0, 2, 6, 4)


def test_not_contiguous(device):
    """As a linear layer gives q, k and v: [B, L, 3, h, d], permuted."""
    q, k, v, cell = tokens(2, 3, 10, 8, device)
    strided = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    assert not strided[0].is_contiguous()
    result = local_aligned_attention(*strided, cell, 4)
    torch.testing.assert_close(result, local_aligned_attention(q, k, v, cell, 4))


def test_autocast(device):
    q, k, v, cell = tokens(2, 2, 10, 8, device)
    expected = reference.local_aligned_attention(q, k, v, cell, 4, LOCAL)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        alignment = align(cell, 4)
        assert alignment.bias is None or alignment.bias.dtype == torch.bfloat16  # cast once for all blocks
        result = local_aligned_attention(q, k, v, alignment)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.02, atol=0.03)  # bfloat16 has 8 bits


def test_bias_of_another_dtype(device):
    q, k, v, cell = tokens(2, 2, 10, 8, device, torch.bfloat16)
    alignment = align(cell, 4)
    result = local_aligned_attention(q, k, v, alignment)
    check_close(result, reference.local_aligned_attention(q, k, v, cell, 4, LOCAL))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(device, scheme):
    q, k, v, cell = tokens(2, 2, 7, 3, device, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *qkv: local_aligned_attention(*qkv, cell, 3, scheme), inputs)


def test_masked_keys_get_no_gradient(device):
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


def test_same_bits(device, num_threads):
    q, k, v, cell = tokens(4, 6, 81, 64, device)

    def call() -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = local_aligned_attention(*leaves, cell, 32)
        out.square().sum().backward()
        return (out.detach(), *(leaf.grad for leaf in leaves))

    check_same_bits(call, num_threads)


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


def test_nan_stays_in_its_row(device):
    """A NaN in a query reaches that query's output alone."""
    q, k, v, cell = tokens(1, 1, 6, 4, device)
    q[0, 0, 2] = math.nan
    result = local_aligned_attention(q, k, v, cell, 3)
    assert torch.isnan(result[0, 0]).all(-1).nonzero().flatten().tolist() == [2]
