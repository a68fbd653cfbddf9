"""Cameras, depth maps and alignment cells of jointmae.model.projection."""

from __future__ import annotations

import math

import pytest
import torch

from jointmae.config import ModelConfig
from jointmae.model.masking import draw
from jointmae.model.projection import (
    View,
    cells_of,
    choose_view,
    coarsen_cells,
    colorize,
    intrinsics,
    project,
    smooth,
    world_to_cam,
)
from tests.models import furniture, micro_config

UP = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, -1, 0], [1, 0, 0]])


def some_view(size: int) -> View:
    draws = draw(micro_config(), 0, 0, torch.arange(size))
    return choose_view(micro_config(), draws.view)


def test_cameras_are_rigid_and_look_at_the_origin():
    cameras = world_to_cam(ModelConfig(), some_view(4), UP, 4)  # [4, 4, 3, 4]
    rotation, translation = cameras[..., :3], cameras[..., 3]
    eye = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), eye)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, 4))
    torch.testing.assert_close(translation, torch.tensor([0, 0, 1.4]).expand_as(translation))


def test_up_points_up_in_the_image_and_elevation_lifts_the_camera():
    view = View(torch.zeros(4), torch.full((4,), 0.3 * math.pi))
    camera = world_to_cam(ModelConfig(), view, UP, 1)[:, 0]
    # seen from above, the tip of the up axis is nearer than the origin
    up_in_camera = (camera[:, :, :3] @ UP[..., None])[..., 0]  # x right, y down, z forward
    assert up_in_camera[:, 0].abs().max() < 1e-6
    torch.testing.assert_close(up_in_camera[:, 1], torch.full((4,), -math.cos(0.3 * math.pi)))
    torch.testing.assert_close(up_in_camera[:, 2], torch.full((4,), -math.sin(0.3 * math.pi)))


def test_views_turn_by_equal_angles_about_the_up_axis():
    cameras = world_to_cam(ModelConfig(), some_view(4), UP, 4)
    backward = -cameras[:, :, 2, :3]  # [4, V, 3], from the origin to the camera
    height = (backward * UP[:, None]).sum(-1)
    torch.testing.assert_close(height, height[:, :1].expand_as(height))
    level = torch.nn.functional.normalize(backward - height[..., None] * UP[:, None], dim=-1)
    cosines = (level[:, :1] * level).sum(-1)
    torch.testing.assert_close(cosines, torch.tensor([1.0, 0, -1, 0]).expand_as(cosines), atol=1e-5, rtol=0)


def test_random_views_are_in_range_and_cover_it():
    view = choose_view(ModelConfig(), draw(micro_config(), 0, 0, torch.arange(4000)).view)
    size = view.elevation.abs() / math.pi
    assert 0.2 <= size.min() < 0.205 and 0.395 < size.max() <= 0.4
    assert 0.45 < (view.elevation > 0).float().mean() < 0.55
    histogram = torch.histc(view.azimuth, 8, 0, 2 * math.pi)
    assert histogram.min() > 400


@pytest.mark.parametrize(("views", "number"), [("fixed6", 6), ("fixed10", 10)])
def test_fixed_views(views, number):
    view = choose_view(micro_config(views=views), draw(micro_config(), 0, 0, torch.arange(500)).view)
    assert len({(round(a, 4), round(e, 4)) for a, e in zip(*(t.tolist() for t in view), strict=True)}) == number


def test_the_unit_sphere_fills_the_image():
    config = ModelConfig(footprint_radius=0)
    directions = torch.nn.functional.normalize(torch.randn(200_000, 3), dim=-1)
    camera = world_to_cam(config, some_view(1), UP[:1], 1)
    maps = project(config, directions[None], camera, "zbuffer")
    assert (maps.pixels[0, 0] >= 0).all()  # nothing is outside
    low, high = maps.pixels[0, 0].amin(0), maps.pixels[0, 0].amax(0)
    assert (low <= 1).all() and (high >= 222).all()


def test_unit_depth_is_one_near_and_zero_far_and_outside():
    config = ModelConfig(footprint_radius=0)
    camera = world_to_cam(config, View(torch.zeros(1), torch.zeros(1)), UP[:1], 1)
    backward = -camera[0, 0, 2, :3]
    points = torch.stack([0.999 * backward, 0 * backward, -0.999 * backward])[None]
    centre = torch.tensor([112, 112])
    for point, expected in zip(points[0], (0.9995, 0.5, 0.0005), strict=True):
        maps = project(config, point[None, None], camera, "zbuffer")
        assert maps.pixels[0, 0, 0].tolist() in ([112, 112], [111, 111], [111, 112], [112, 111]), centre
        assert maps.images.max().item() == pytest.approx(expected, abs=1e-4)
        assert (maps.images > 0).sum() == 1


def test_depth_maps_of_real_shapes_are_filled_and_seldom_empty():
    """With 5x5 footprints a quarter of the image or so is covered (docs/deviations.md, D 9)."""
    config = ModelConfig()
    clouds = furniture()
    cameras = world_to_cam(config, some_view(32), clouds.up[:32], 1)
    images = project(config, clouds.points[:32], cameras, "zbuffer").images
    covered = (images > 0).flatten(1).float().mean(1)
    assert 0.02 < covered.min() and 0.15 < covered.median() < 0.6
    assert images.max() <= 1 and images.min() >= 0


def test_cells_number_the_tokens_row_by_row():
    config = ModelConfig()  # 14 x 14 tokens
    pixels = torch.tensor([[0, 0], [15, 15], [16, 0], [0, 16], [223, 223], [-1, -1]], dtype=torch.int32)
    assert cells_of(config, pixels).tolist() == [0, 0, 1, 14, 195, -1]
    coarse = coarsen_cells(micro_config(image_size=224, align_cells=2), cells_of(config, pixels))
    assert coarse.tolist() == [0, 0, 0, 0, 48, -1]


def test_colors_are_distinct_and_background_is_black():
    ramp = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    colors = colorize(ramp)
    assert colors.shape == (1, 3, 8, 8) and colors[0, :, 0, 0].eq(0).all()
    assert len(torch.unique(colors.flatten(2)[0].T, dim=0)) >= 60


def test_smoothing_fills_pinholes_and_keeps_flat_regions():
    image = torch.full((1, 1, 9, 9), 0.5)
    image[..., 4, 4] = 0
    filled = smooth(image)
    assert filled[..., 2:-2, 2:-2].eq(0.5).all()


def test_intrinsics_put_the_optical_axis_in_the_middle():
    matrix = intrinsics(ModelConfig(), torch.device("cpu"))
    assert matrix[0, 2] == matrix[1, 2] == 112 and matrix[0, 0] == matrix[1, 1]
