from __future__ import annotations

import pytest
import torch

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import KINDS, check_same_bits, clouds


def _inputs(device, kind="random", B=2, M=9, N=40, C=5, dtype=torch.float32):
    features = torch.randn(B, N, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return clouds(kind, B, M, device, dtype, seed=1), clouds(kind, B, N, device, dtype), features.to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 40])
def test_equals_reference(device, kind, dtype, k):
    queries, points, features = _inputs(device, kind, dtype=dtype)
    out = ops.knn_interpolate(queries, points, features, k)
    torch.testing.assert_close(out, reference.knn_interpolate(queries, points, features, k, None))


def test_a_query_on_a_point_gets_its_features(device):
    _, points, features = _inputs(device, "integer", N=1)
    torch.testing.assert_close(ops.knn_interpolate(points, points, features, k=1), features)
    points = torch.arange(6, device=device).reshape(1, 2, 3).float()
    features = torch.tensor([[[1.0], [2.0]]], device=device)
    torch.testing.assert_close(ops.knn_interpolate(points, points, features, k=2), features)


def test_lengths(device):
    queries, points, features = _inputs(device)
    lengths = torch.tensor([40, 11], device=device)
    out = ops.knn_interpolate(queries, points, features, lengths=lengths)
    alone = ops.knn_interpolate(queries[1:], points[1:, :11], features[1:, :11])
    torch.testing.assert_close(out[1:], alone)


def test_features_keep_their_dtype(device):
    queries, points, features = _inputs(device)
    out = ops.knn_interpolate(queries, points, features.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), ops.knn_interpolate(queries, points, features), rtol=0.02, atol=0.02
    )  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(device, dtype):
    queries, points = torch.rand(2, 64, 3, device=device), torch.rand(2, 32, 3, device=device)
    features = torch.randn(2, 32, 8, device=device).to(dtype)
    exact = ops.knn_interpolate(queries, points, features.float()).to(dtype)  # rounded once
    assert torch.equal(ops.knn_interpolate(queries, points, features), exact)


def test_strides_and_empty_batch(device):
    queries, points, features = _inputs(device)
    strided = features.transpose(1, 2).contiguous().transpose(1, 2)
    expected = ops.knn_interpolate(queries, points, features)
    torch.testing.assert_close(ops.knn_interpolate(queries, points, strided), expected)
    assert ops.knn_interpolate(queries[:0], points[:0], features[:0]).shape == (0, 9, 5)


def test_errors():
    queries, points, features = _inputs(torch.device("cpu"))
    for error, message, call in [
        (ValueError, "k must be in [1, N=40], got 41", lambda: ops.knn_interpolate(queries, points, features, 41)),
        (
            ValueError,
            "features must have shape [B, N=40, C], got [2, 39, 5]",
            lambda: ops.knn_interpolate(queries, points, features[:, 1:]),
        ),
        (
            ValueError,
            "points and features must have the same B, got 2 and 1",
            lambda: ops.knn_interpolate(queries, points, features[:1]),
        ),
        (
            TypeError,
            "features must be floating point, got torch.int64; call .float() on it",
            lambda: ops.knn_interpolate(queries, points, features.long()),
        ),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"knn_interpolate: {message}"


def test_gradients(device):
    inputs = tuple(tensor.requires_grad_() for tensor in _inputs(device, N=8, dtype=torch.float64))
    assert torch.autograd.gradcheck(ops.knn_interpolate, inputs)


def test_compile(device):
    compiled = torch.compile(ops.knn_interpolate, backend="aot_eager", fullgraph=True)
    inputs = _inputs(device)
    torch.testing.assert_close(compiled(*inputs), ops.knn_interpolate(*inputs))


def test_same_bits(num_threads):
    inputs = _inputs(torch.device("cpu"), M=300, N=200)
    check_same_bits(lambda: ops.knn_interpolate(*inputs), num_threads)
