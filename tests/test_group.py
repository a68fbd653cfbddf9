from __future__ import annotations

import pytest
import torch

from jointmae import ops
from jointmae.ops import reference
from tests.op_cases import check_concurrent, check_fork, check_same_bits, equal

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def _inputs(device, B=3, N=50, G=7, k=5, C=4, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-8, 9, (B, N, C), generator=generator).to(device, dtype)
    return features, torch.randint(N, (B, G, k), generator=generator).to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 3, 5, 96])
def test_equals_reference(device, dtype, C):
    features, indices = _inputs(device, C=C, dtype=dtype)
    out = ops.group(features, indices)
    assert out.dtype == dtype
    assert torch.equal(out, reference.group(features, indices))
    assert torch.equal(out[2, 6, 4], features[2, indices[2, 6, 4]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("B", "C"), [(1, 1), (1, 3), (3, 3), (1, 96), (3, 96)])
def test_backward_equals_reference(device, num_threads, dtype, B, C):
    features, indices = _inputs(device, B=B, C=C, dtype=dtype)
    grad = ops.group(features, indices)  # small integers: sums are exact in every dtype
    expected = reference.group_backward(grad, indices, features.shape[1])
    for threads in (1, 2, 5):
        num_threads(threads)
        ours = torch.ops.jointmae.group_backward(grad, indices, features.shape[1])
        assert ours.dtype == dtype
        assert torch.equal(ours, expected)


def test_large_outputs(device):
    """Of more than 8 MB, which lie in large pages."""
    features = torch.randn(2, 11_000, 100, device=device).requires_grad_()
    indices = torch.arange(11_000, device=device).flip(0).expand(2, 1, -1)
    out = ops.group(features, indices)
    assert torch.equal(out[:, 0], features.flip(1))
    (grad,) = torch.autograd.grad(out, features, out)
    assert torch.equal(grad, features)


def test_half_gradients_add_up_in_float32(device):
    features = torch.zeros(1, 1, 3, device=device, dtype=torch.float16, requires_grad=True)
    ops.group(features, torch.zeros(1, 4096, 1, device=device, dtype=torch.int64)).sum().backward()
    assert features.grad.tolist() == [[[4096.0] * 3]]  # float16 would stop at 2048


def test_strides(device):
    features, indices = _inputs(device)
    strided = features.transpose(1, 2).contiguous().transpose(1, 2)
    other = indices.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.group(strided, other), ops.group(features, indices))


@pytest.mark.parametrize("sizes", [{"B": 0}, {"G": 0}, {"k": 0}, {"C": 0}])
def test_empty(device, sizes):
    features, indices = _inputs(device, **sizes)
    features.requires_grad_()
    out = ops.group(features, indices)
    assert out.shape == (*indices.shape, features.shape[2])
    out.sum().backward()
    assert not features.grad.any()


def test_errors():
    features, indices = _inputs(torch.device("cpu"))
    low, high = indices.clone(), indices.clone()
    low[1, 2, 3], high[2, 6, 4] = -1, 50
    for error, message, call in [
        (ValueError, "indices must be in [0, N=50), got -1", lambda: ops.group(features, low)),
        (ValueError, "indices must be in [0, N=50), got 50", lambda: ops.group(features, high)),
        (ValueError, "indices must be in [0, N=0), got 1", lambda: ops.group(features[:, :0], indices * 0 + 1)),
        (
            ValueError,
            "indices must be in [0, N=50), got 50",
            lambda: torch.ops.jointmae.group_backward(ops.group(features, indices), high, 50),
        ),
        (ValueError, "features must have shape [B, N, C], got [50, 4]", lambda: ops.group(features[0], indices)),
        (ValueError, "indices must have shape [B, G, k], got [3, 7]", lambda: ops.group(features, indices[..., 0])),
        (
            ValueError,
            "features and indices must have the same B, got 1 and 3",
            lambda: ops.group(features[:1], indices),
        ),
        (TypeError, "indices must be int64, got torch.int32", lambda: ops.group(features, indices.int())),
        (
            TypeError,
            "features must be floating point, got torch.int64; call .float() on it",
            lambda: ops.group(features.long(), indices),
        ),
        (TypeError, "features must be a tensor, got list", lambda: ops.group([1], indices)),
        (TypeError, "indices must be a tensor, got list", lambda: ops.group(features, [1])),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == f"group: {message}"


def test_gradients(device):
    features, indices = _inputs(device, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: ops.group(f, indices), features.requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
def test_registration(device, dtype):
    features, indices = _inputs(device, dtype=dtype)
    torch.library.opcheck(torch.ops.jointmae.group, (features.requires_grad_(), indices))
    grad = ops.group(features, indices).detach()
    torch.library.opcheck(torch.ops.jointmae.group_backward, (grad, indices, 50))


def test_compile(device):
    compiled = torch.compile(ops.group, backend="aot_eager", fullgraph=True)
    features, indices = _inputs(device)
    assert torch.equal(compiled(features, indices), ops.group(features, indices))


def test_same_bits(num_threads):
    indices = torch.randint(40, (3, 60, 8))
    features, grad = torch.randn(3, 40, 17), torch.randn(3, 60, 8, 17)

    def call():
        leaf = features.clone().requires_grad_()
        out = ops.group(leaf, indices)
        out.backward(grad)
        return out.detach(), leaf.grad

    check_same_bits(call, num_threads)
    assert equal(call()[1][:1], torch.ops.jointmae.group_backward(grad[:1], indices[:1], 40))  # by channel ranges


def test_concurrent_and_forked():
    features, indices = _inputs(torch.device("cpu"), B=8, N=500, G=100)
    check_concurrent(lambda: ops.group(features, indices))
    check_fork(lambda: ops.group(features, indices))
