"""group, forward and backward, against gather and advanced indexing in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(128, 1024, 128, 32, 3), (32, 2048, 256, 32, 96), (32, 8192, 1024, 16, 3)]


def _advanced_indexing(features: Tensor, indices: Tensor) -> Tensor:
    return features[torch.arange(features.shape[0], device=features.device)[:, None, None], indices]


def _with_backward(call):
    def run(features: Tensor, indices: Tensor) -> Tensor:
        features = features.detach().requires_grad_()
        call(features, indices).sum().backward()
        return features.grad

    return run


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("B", "N", "G", "k", "C"), WORKLOADS)
def bench_group(compare, device, B, N, G, k, C, backward):
    inputs = [(torch.rand(B, N, C, device=device), torch.randint(N, (B, G, k), device=device)) for _ in range(3)]
    candidates = {
        "jointmae": ops.group,
        "reference": reference.group,
        "torch advanced indexing": _advanced_indexing,
    }
    if backward:
        candidates = {name: _with_backward(call) for name, call in candidates.items()}
    compare(
        f"group{' + backward' if backward else ''} B{B} N{N} {G}x{k} C{C}",
        candidates,
        inputs,
        num_bytes=B * G * k * (8.0 + 2 * 4 * C) * (2 if backward else 1),
    )
