"""Both tile sizes of the CUDA kernels: the CPU's bits, and no harm from values that nobody has checked."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from jointmae.ops.native import kernels
from jointmae.ops.project_points import _backward_cpu, _backward_cuda, _cpu, _cuda
from tests.test_project_points import MODES, SOFT, scene

OP = importlib.import_module("jointmae.ops.project_points")  # jointmae.ops has the function under this name
CPU = torch.device("cpu")
PATHS = {"large tiles": 1, "small tiles": 2}
# B, N, V, H, W, radius: one point; points around 32 and 1,024 and many times that; tiles that stick out; all of the
# frame covered by all
SHAPES = (
    (1, 1, 1, 1, 1, 0),
    (2, 31, 3, 37, 21, 2),
    (1, 33, 2, 4, 70, 1),
    (2, 1100, 2, 20, 33, 0),
    (1, 2500, 1, 33, 40, 2),
    (1, 7000, 1, 9, 18, 1),
    (1, 1100, 1, 9, 17, 9),
    (1, 70, 2, 40, 24, 40),
    (40, 3, 13, 3, 5, 1),
)


@pytest.fixture
def on_kernels(device: torch.device, on_simt: ModuleType) -> ModuleType:
    """The module, with the threads in the order of `device`."""
    return on_simt


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(OP, "_PATH", PATHS[request.param])
    return PATHS[request.param]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where values are not looked at."""
    monkeypatch.setattr(OP, "_check_values", lambda *tensors: None)


def arguments(B: int, N: int, V: int, H: int, W: int, radius: int, mode: str, **soft: float) -> tuple[Any, ...]:
    points, cameras, intrinsics, _ = scene(B, N, V, H, W, CPU)
    return points, cameras, intrinsics.expand(B, V, 3, 3), H, W, radius, mode, *(SOFT | soft).values()


def check_same_bits(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("depth", "index", "coverage", "pixels", "dropped", "weight_sum"), ours, theirs, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_of_the_cpu(on_kernels, path, shape, mode):
    args = arguments(*shape, mode, sigma=1.3, temperature=0.2)
    check_same_bits(_cuda(*args), _cpu(*args))


@pytest.mark.parametrize("mode", MODES)
def test_ties_and_crowded_pixels(on_kernels, path, mode):
    """Hundreds of points at each of a few places and depths."""
    points, *others = arguments(1, 1500, 1, 20, 36, 3, mode)
    points = (points * 2).round() / 8
    check_same_bits(_cuda(points, *others), _cpu(points, *others))


@pytest.mark.parametrize(("sigma", "temperature"), [(0.1, 1e-3), (0.25, 0.05), (1.3, 1e-9), (1.3, 1e-35), (1.3, 1e9)])
def test_weights_that_underflow(on_kernels, path, sigma, temperature):
    args = arguments(1, 200, 1, 20, 36, 3, "soft", sigma=sigma, temperature=temperature)
    check_same_bits(_cuda(*args), _cpu(*args))
    saved, grads, settings = saved_and_gradients(args)
    ours, theirs = (backward(*grads, *saved, *settings) for backward in (_backward_cuda, _backward_cpu))
    assert torch.equal(ours, theirs) and torch.isfinite(ours).all()


def saved_and_gradients(args: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor], tuple[Any, ...]]:
    depth, index, _, _, _, weight_sum = _cpu(*args)
    generator = torch.Generator().manual_seed(1)
    grads = torch.randn(depth.shape, generator=generator), torch.randn(depth.shape, generator=generator)
    return (*args[:3], depth, index, weight_sum), grads, args[5:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_cpu(on_kernels, shape, mode):
    saved, (by_depth, by_coverage), settings = saved_and_gradients(arguments(*shape, mode, sigma=1.3, temperature=0.2))
    for grads in ((by_depth, by_coverage), (by_depth, None), (None, by_coverage)):
        ours, theirs = (backward(*grads, *saved, *settings) for backward in (_backward_cuda, _backward_cpu))
        if mode == "zbuffer":
            torch.testing.assert_close(ours, theirs)  # the CPU adds in the order of the pixels
        else:
            assert torch.equal(ours, theirs)


BAD = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45)


@pytest.mark.parametrize("mode", MODES)
def test_points_that_are_not_finite_are_dropped(on_kernels, path, unchecked, mode):
    points, *others = arguments(2, 60, 2, 12, 20, 2, mode)
    wanted = points.clone()
    for i, value in enumerate(BAD[:3]):
        points[0, 5 * i, i] = value
        wanted[0, 5 * i] = torch.tensor([1e4, 1e4, 1e4])  # never in a frame
    ours = _cuda(points, *others)
    check_same_bits(ours, _cuda(wanted, *others))
    saved = points, *others[:2], ours[0], ours[1], ours[5]
    grad = _backward_cuda(torch.ones_like(ours[0]), torch.ones_like(ours[0]), *saved, *others[4:])
    assert torch.isfinite(grad).all()
    assert grad[0, [0, 5, 10]].eq(0).all()


@pytest.mark.parametrize("mode", MODES)
def test_extreme_values_leave_the_frame_or_draw_what_the_cpu_draws(on_kernels, path, unchecked, mode):
    for which, at in ((0, 3), (0, 4), (0, 5), (1, 0), (1, 3), (1, 10), (1, 11), (2, 0), (2, 2), (2, 5)):
        for value in BAD:
            inputs = list(arguments(1, 40, 2, 12, 20, 2, mode))
            inputs[which] = inputs[which].contiguous()
            inputs[which].view(-1)[at] = value
            torch.testing.assert_close(_cuda(*inputs), _cpu(*inputs), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_index_out_of_range_reads_nothing_out_of_range(on_kernels, mode):
    """AddressSanitizer sees what this test does not."""
    (*saved, index, weight_sum), grads, settings = saved_and_gradients(arguments(2, 40, 2, 12, 20, 2, mode))
    index = torch.randint(-(2**31), 2**31 - 1, index.shape, dtype=torch.int64).int()
    assert _backward_cuda(*grads, *saved, index, weight_sum, *settings).shape == (2, 40, 3)


def test_tiles_are_chosen_by_the_size_of_the_work(on_simt):
    def workspace(views: int, path: int) -> int:
        spec = kernels.ProjectSpec(1, views, 100, 64, 64, 2, 0, *SOFT.values())
        return on_simt.project_points_workspace_cuda(spec, path, 0, 0)

    assert workspace(1, 0) == workspace(1, 2) != workspace(1, 1)
    assert workspace(1000, 0) == workspace(1000, 1) != workspace(1000, 2)


def test_images_of_2_to_the_30_pixels_a_side_are_refused(on_simt):
    for H, W in ((1, 1 << 30), (1 << 30, 1)):
        spec = kernels.ProjectSpec(1, 1, 1, H, W, 2, 0, *SOFT.values())
        with pytest.raises(ValueError, match=r"project_points: image_size must be below 2\^30 on a GPU"):
            on_simt.project_points_workspace_cuda(spec, 0, 0, 0)
