"""farthest_point_sample against QuickFPS (fpsample, torch-quickfps), torch-cluster and the loop in PyTorch.

C++ peers that start elsewhere than asked are checked by how far their samples lie apart, the others by index.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import peer
from jointmae import ops
from jointmae.ops import reference

WORKLOADS = [(32, 1024, 128), (128, 1024, 128), (32, 2048, 256), (128, 2048, 256), (128, 256, 64), (32, 8192, 1024)]
SCENES = [(1, 100_000, 4096), (1, 1_000_000, 2048)]


def _fpsample(points: Tensor, num_samples: int) -> Tensor:
    sample = peer("fpsample").bucket_fps_kdline_sampling
    h = 3 if points.shape[1] < 4096 else 5 if points.shape[1] < 50_000 else 7
    clouds = [sample(cloud.numpy(), num_samples, h=h, start_idx=0) for cloud in points]
    return torch.stack([torch.from_numpy(indices.astype("int64")) for indices in clouds])


def _quickfps(points: Tensor, num_samples: int) -> Tensor:
    return peer("torch_quickfps").sample_idx(points, num_samples, start_idx=0)


def _torch_cluster(points: Tensor, num_samples: int) -> Tensor:
    B, N, _ = points.shape
    batch = torch.arange(B, device=points.device).repeat_interleave(N)
    indices = peer("torch_cluster").fps(points.reshape(-1, 3), batch, num_samples / N, random_start=False)
    return indices.view(B, num_samples) % N


PEERS = {"fpsample": _fpsample, "torch_quickfps": _quickfps, "torch_cluster": _torch_cluster}


@pytest.mark.parametrize(("B", "N", "M"), WORKLOADS + SCENES)
def bench_farthest_point_sample(compare, device, quick, B, N, M):
    if quick and N > 8192:
        pytest.skip("a large workload: run without --quick")
    inputs = [(torch.rand(B, N, 3, device=device), M) for _ in range(4 if N < 100_000 else 2)]

    def check(result: Tensor, ours: Tensor) -> None:
        points, _ = inputs[0]
        torch.testing.assert_close(_spacing(points, result), _spacing(points, ours), rtol=0.1, atol=0)

    candidates = {"jointmae": ops.farthest_point_sample}
    if B * N * M <= (2**22 if quick else 2**27):  # the loop in PyTorch takes seconds beyond
        candidates["reference"] = lambda points, num_samples: reference.farthest_point_sample(
            points, num_samples, 0, None
        )
    candidates |= {name: call for name, call in PEERS.items() if peer(name) and device.type == "cpu"}
    compare(
        f"farthest_point_sample B{B} N{N}->{M}",
        candidates,
        inputs,
        check=check,
        num_bytes=12.0 * B * N,
        flops=9.0 * B * N * M,
    )


def _spacing(points: Tensor, indices: Tensor) -> Tensor:
    """The distance between the last sample and the nearest of those before it, per cloud: greedy sampling's radius."""
    samples = points.gather(1, indices[..., None].expand(-1, -1, 3))
    return (samples[:, :-1] - samples[:, -1:]).norm(dim=-1).amin(1).mean()
