"""The operators without the model: sample, group, render and compare a cloud.

python examples/ops_alone.py
"""

from __future__ import annotations

import torch

from jointmae import ops
from jointmae.data import load


def main() -> None:
    points = load("furniture", ("test",)).points[:4]  # [4, 2048, 3]
    indices = ops.farthest_point_sample(points, 128)  # [4, 128]
    centers = points.gather(1, indices[..., None].expand(-1, -1, 3))  # [4, 128, 3]
    sq_dists, neighbors = ops.knn(centers, points, k=16)  # [4, 128, 16] each
    groups = ops.group(points, neighbors) - centers[:, :, None]  # [4, 128, 16, 3]
    print(f"{groups.shape[1]} groups of {groups.shape[2]}, mean radius {sq_dists[..., -1].sqrt().mean():.3f}")

    camera = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.5]]).expand(4, 1, 3, 4)  # looks along -z
    intrinsics = torch.tensor([[200.0, 0, 64], [0, 200, 64], [0, 0, 1]])
    depth = ops.project_points(points, camera, intrinsics, (128, 128)).depth  # [4, 1, 128, 128]
    print(f"depth maps filled to {(depth > 0).float().mean():.0%}")

    moved = (points + 0.01).requires_grad_()
    loss = ops.chamfer_distance(moved, points)
    loss.backward()
    print(f"Chamfer distance to a copy moved by 0.01 an axis: {loss.item():.2e}, gradient norm {moved.grad.norm():.2e}")


if __name__ == "__main__":
    main()
