"""Features of point clouds, and which clouds of the embedded set look alike.

python -m jointmae.train                     # once: the demo's encoder
python examples/encode_clouds.py             # or: ... encode_clouds.py RUN
"""

from __future__ import annotations

import sys

import torch

from jointmae import JointMAE
from jointmae.data import load
from jointmae.errors import CheckpointError


def main(run: str = "runs/tiny-furniture-0") -> None:
    model = JointMAE.from_pretrained(run)
    clouds = load("furniture", ("test",)).first(model.config.num_points)
    with torch.no_grad():
        features = model.encode(clouds.points)  # tokens [S, G, C], centers [S, G, 3], pooled [S, 2 C]
    unit = torch.nn.functional.normalize(features.pooled - features.pooled.mean(0), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    for i in range(0, len(clouds), 10):
        j = int(nearest[i])
        print(f"{clouds.names[i]:40s} looks most like {clouds.names[j]}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CheckpointError as error:
        sys.exit(f"{error}\nFor the default, run `python -m jointmae.train` first.")
