"""Every op in plain PyTorch: the definition, the oracle of the tests, and the fallback on devices without kernels.

B clouds, N points, M samples or queries, G groups, k neighbours, C channels, V views, H x W pixels.
A squared distance is (dx*dx + dy*dy) + dz*dz, each operation rounded, here as in the kernels: indices agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _sq_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between `a` [..., 3] and `b` [..., 3], broadcast; the order of rounding is part of the contract."""
    dx, dy, dz = (a - b).unbind(-1)
    return (dx * dx + dy * dy) + dz * dz


def farthest_point_sample(points: Tensor, num_samples: int, start: int, lengths: Tensor | None) -> Tensor:
    """See `jointmae.ops.farthest_point_sample`."""
    B, N, _ = points.shape
    sq_dist = points.new_full((B, N), torch.inf)
    if lengths is not None:
        padding = torch.arange(N, device=points.device) >= lengths[:, None]  # [B, N]
        sq_dist = sq_dist.masked_fill(padding, -1)  # never the farthest
    indices = [torch.full((B, 1), start, dtype=torch.int64, device=points.device)]
    for _ in range(num_samples - 1):
        last = points.gather(1, indices[-1][..., None].expand(-1, -1, 3))  # [B, 1, 3]
        sq_dist = torch.minimum(sq_dist, _sq_distances(points, last))
        indices.append(_first_argmax(sq_dist))
    return torch.cat(indices, dim=1)  # [B, M]


def _first_argmax(values: Tensor) -> Tensor:
    """The lowest index of each row's maximum, [B, N] -> [B, 1]; `Tensor.argmax` leaves the choice open."""
    at_maximum = values == values.amax(1, keepdim=True)
    position = torch.arange(values.shape[1], device=values.device)
    return torch.where(at_maximum, position, values.shape[1]).amin(1, keepdim=True)
