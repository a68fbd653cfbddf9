"""Figure 5 of the paper for some shapes: what goes in, what is hidden, what comes out.

B shapes, G 3D tokens, k points of a group, P 2D tokens, S side of a depth map, n points of one picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jointmae.data import PointClouds
from jointmae.evaluate import reconstruct
from jointmae.model import JointMAE, Reconstruction, losses
from jointmae.model.embed import image_of, patches_of
from jointmae.model.masking import Mask, take, visible_flags
from jointmae.model.projection import View, world_to_cam
from jointmae.report.render import Array, colors_by_height, depth_png, spheres_png

NUM_SHAPES = 6
VISIBLE = (0.20, 0.47, 0.78)  # blue and orange: told apart by every kind of colour vision
PREDICTED = (0.94, 0.49, 0.13)
HIDDEN = (0.60, 0.62, 0.65)

_AZIMUTH, _ELEVATION = 0.20 * math.pi, 0.14 * math.pi  # a three-quarter view, a little from above


class Picture(NamedTuple):
    """One picture of a shape."""

    caption: str
    alt: str
    png: bytes


class Shape(NamedTuple):
    """The pictures of one shape and what the model's prediction of it costs."""

    name: str
    class_name: str  # empty where it has none
    clouds: list[Picture]  # input, token centres, visible, reconstructed
    depth_maps: list[Picture]  # input, visible, reconstructed; none for a model without the 2D branch
    loss_3d: float


def shapes(model: JointMAE, clouds: PointClouds) -> list[Shape]:
    """Pictures of up to six shapes of `clouds`, reconstructed from a fixed view and fixed masks."""
    ids = choose(clouds.labels.tolist(), NUM_SHAPES)
    output = reconstruct(model, clouds, torch.tensor(ids))
    up = clouds.up[torch.tensor(ids, device=clouds.device)]
    return [_shape(model, clouds, i, row, output, up[row]) for row, i in enumerate(ids)]


def choose(labels: list[int], count: int) -> list[int]:
    """Indices of `count` clouds of different classes, both spread over the set.

    More of a class only where there are too few. A function of the labels alone: no look at the result.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        if label >= 0:
            members.setdefault(label, []).append(index)
    classes = _spread(sorted(members), count)
    chosen = [members[label][int((i + 0.5) / len(classes) * len(members[label]))] for i, label in enumerate(classes)]
    rest = [index for index in range(len(labels)) if index not in chosen]
    return chosen + _spread(rest, count - len(chosen))


def _spread(values: list[int], count: int) -> list[int]:
    """Up to `count` of `values`, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]


def _shape(model: JointMAE, clouds: PointClouds, index: int, row: int, output: Reconstruction, up: Tensor) -> Shape:
    label = int(clouds.labels[index])
    name, class_name = clouds.names[index], clouds.classes[label] if label >= 0 else ""
    scale = model.config.group_scale
    target = take(output.inputs.groups, output.inputs.mask_3d.ids_hidden)[row : row + 1]  # [1, G", k, 3]
    loss_3d = float(losses.loss_3d(output.pred_groups[row : row + 1] * scale, target * scale))
    what = f"{class_name} {name}".strip()
    return Shape(
        name,
        class_name,
        _cloud_pictures(model, row, output, up, what),
        _depth_pictures(model, row, output, what),
        loss_3d,
    )


# ---- clouds ----


class _Camera:
    """An orthographic three-quarter view that fills the picture with one cloud."""

    def __init__(self, model: JointMAE, points: Tensor, up: Tensor) -> None:
        view = View(up.new_tensor([_AZIMUTH]), up.new_tensor([_ELEVATION]))
        self.rotation = world_to_cam(model.config, view, up[None], 1)[0, 0, :, :3]  # [3, 3]
        self.up = up
        seen = points @ self.rotation.T  # [N, 3], x right, y down, z away
        low, high = seen.amin(0), seen.amax(0)
        self.center = (low + high) / 2
        self.zoom = 0.88 / max(float((high - low)[:2].max()) / 2, 1e-6)

    def picture(self, points: Tensor, colors: Array, radius: float) -> bytes:
        """Spheres at `points` [n, 3] of the world."""
        seen = ((points @ self.rotation.T - self.center) * self.zoom).cpu().double().numpy()
        seen[:, 2] = np.clip(seen[:, 2], -1, 1)
        return spheres_png(seen, colors, radius)


def visible_and_predicted(row: int, output: Reconstruction) -> tuple[Tensor, Tensor]:
    """The points of one cloud's visible groups and of its predicted hidden ones, [n, 3] each."""
    inputs, centers = output.inputs, output.inputs.geometry.centers[row]
    mask = Mask(*(ids[row] for ids in inputs.mask_3d))
    visible = (inputs.groups[row][mask.ids_keep] + centers[mask.ids_keep][:, None]).flatten(0, 1)
    predicted = (output.pred_groups[row] + centers[mask.ids_hidden][:, None]).flatten(0, 1)
    return visible.float(), predicted.float()


def _cloud_pictures(model: JointMAE, row: int, output: Reconstruction, up: Tensor, what: str) -> list[Picture]:
    inputs = output.inputs
    points, centers = inputs.points[row].float(), inputs.geometry.centers[row].float()
    mask = Mask(*(ids[row] for ids in inputs.mask_3d))
    camera = _Camera(model, points, up)
    visible, predicted = visible_and_predicted(row, output)
    radius = 0.75 / math.sqrt(len(points))

    def draw(size: float, *layers: tuple[Tensor, tuple[float, float, float]]) -> bytes:
        colors = np.concatenate([np.tile(color, (len(layer), 1)) for layer, color in layers])
        return camera.picture(torch.cat([layer for layer, _ in layers]), colors, radius * size)

    by_height = colors_by_height((points @ up).cpu().double().numpy())
    kept, hidden = centers[mask.ids_keep], centers[mask.ids_hidden]
    return [
        Picture("input cloud", f"Point cloud of {what}.", camera.picture(points, by_height, radius)),
        Picture(
            "token centres",
            f"Centres of the 3D tokens of {what}: {len(kept)} visible in blue, {len(hidden)} hidden in grey.",
            draw(2.0, (hidden, HIDDEN), (kept, VISIBLE)),
        ),
        Picture(
            "visible cloud", f"The visible groups of {what}, all that the encoder sees.", draw(1.0, (visible, VISIBLE))
        ),
        Picture(
            "reconstruction",
            f"The visible groups of {what} in blue and the predicted hidden groups in orange.",
            draw(1.0, (predicted, PREDICTED), (visible, VISIBLE)),
        ),
    ]


# ---- depth maps ----


class DepthTriple(NamedTuple):
    """One depth map before and after."""

    input: Array  # [channels, S, S]
    hidden: NDArray[np.bool_]  # [S, S]
    rebuilt: Array  # [channels, S, S], hidden patches predicted


def depth_triple(model: JointMAE, row: int, output: Reconstruction) -> DepthTriple | None:
    """The depth map of one cloud; None for a model without the 2D branch."""
    images, mask = output.inputs.images, output.inputs.mask_2d
    if images is None or mask is None or output.pred_patches is None:
        return None
    image = images[row]  # [channels, S, S]
    visible = image_of(visible_flags(mask)[row, :, None].expand(-1, 256).float()[None], 1)[0, 0] > 0  # [S, S]
    patches = patches_of(images)[row].float().clone()  # [P, channels x 256]
    patches[mask.ids_hidden[row]] = _in_depth(model, output.pred_patches[row].float(), patches[mask.ids_hidden[row]])
    rebuilt = image_of(patches[None], len(image))[0]
    before, after = (x.cpu().double().numpy() for x in (image, rebuilt))
    return DepthTriple(before, ~visible.cpu().numpy(), after)


def _depth_pictures(model: JointMAE, row: int, output: Reconstruction, what: str) -> list[Picture]:
    triple = depth_triple(model, row, output)
    if triple is None:
        return []
    before, hidden, after = triple
    return [
        Picture("depth map", f"Depth map of {what}; near is bright.", depth_png(before)),
        Picture("visible patches", f"Depth map of {what}, hidden patches in grey.", depth_png(before, hidden)),
        Picture("reconstruction", f"Depth map of {what}, hidden patches predicted.", depth_png(after)),
    ]


def _in_depth(model: JointMAE, pred: Tensor, target: Tensor) -> Tensor:
    """Predicted patches in units of depth; a model of normalised patches needs the true mean and variance for that."""
    if not model.config.normalize_patches:
        return pred
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return pred * (variance + 1e-6).sqrt() + mean
