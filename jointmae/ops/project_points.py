"""Point clouds drawn as depth maps through pinhole cameras. B clouds, V views, N points, H x W pixels.

`zbuffer` is the classic z-buffer with square points; `soft` blends the points of a pixel as in soft rasterisation
(Liu et al. 2019), so that gradients reach x, y and z; `harmonic` is the mean of SimpleView (Goyal et al. 2021) and
PointCLIP (Zhang et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jointmae.ops import native, reference
from jointmae.ops.checks import (
    require_finite,
    require_points,
    require_same,
    require_tensor,
    shape_of,
    values_are_checked,
)
from jointmae.ops.native import NewEmpty, address, kernels
from jointmae.ops.registry import define

_OP = "project_points"
_MODES = ("zbuffer", "soft", "harmonic")
_PATH = 0  # the tiles that the CUDA kernels draw in: 0 by the size of the work, 1 large, 2 small; tests force them


@dataclass(frozen=True, eq=False)
class Projection:
    """What `project_points` gives."""

    depth: Tensor  # [B, V, H, W] camera z, 0 where no point covers the pixel
    index: Tensor  # [B, V, H, W] int32, the nearest point that covers the pixel, -1 where there is none
    pixels: Tensor  # [B, V, N, 2] int32, the pixel (x, y) of each point, (-1, -1) where it was dropped
    dropped: Tensor  # [B, V] int64, how many points were dropped
    soft_coverage: Tensor | None = None  # of the mode "soft"; the others' is made when it is asked for

    @property
    def coverage(self) -> Tensor:
        """How much of each pixel is covered, 0..1, [B, V, H, W]."""
        return (self.index >= 0).to(self.depth.dtype) if self.soft_coverage is None else self.soft_coverage


def project_points(
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    image_size: tuple[int, int],
    radius: int = 2,
    mode: str = "zbuffer",
    *,
    sigma: float = 1.0,
    temperature: float = 0.05,
    background: float = 0.1,
) -> Projection:
    """Depth maps of points [B, N, 3] seen by the V cameras world_to_cam [B, V, 3, 4] (x right, y down, z forward).

    The pixel of a point is floor(fx*x/z + cx), floor(fy*y/z + cy) with x, y, z in camera coordinates and fx, fy, cx, cy
    from `intrinsics` [3, 3] or [B, V, 3, 3]; it covers the (2*radius + 1)^2 pixels around it, as far as they lie in the
    frame. Points with z <= 1e-6 and points whose pixel is outside the frame of `image_size` (H, W) are dropped.
    `depth` of a pixel, where the points i cover it (0 where there is none):

    - "zbuffer": the smallest z, which is that of `index`. Its gradient goes to that point, along the viewing axis.
    - "soft": sum w_i z_i / sum w_i with w_i = exp(-d_i^2 / 2 sigma^2) exp(-(z_i - z_min) / temperature), d_i the
      distance in pixels from the pixel's centre to where the point projects, z_min the smallest z_i; and `coverage` =
      sum w / (sum w + background). Gradients of both reach x, y and z; z_min counts as a constant. Where the weights
      underflow (a sigma far below a pixel) depth and coverage are 0; below a sum of 1e-30 they pass no gradient.
    - "harmonic": the harmonic mean, count / sum (1 / z_i). Its gradient goes along the viewing axis.

    In the modes zbuffer and harmonic `coverage` is 0 or 1; it has no gradient and is computed from `index` when it is
    read. Ties in z go to the lowest index. The cameras get no gradient. float16 and bfloat16 are computed and returned
    in float32, float64 in float64. B = 0 gives an empty result. The bits of the results do not depend on threads,
    instruction set or device (but for the gradient of "zbuffer", which a GPU sums in another order), and pixels, index
    and the z-buffer are those of the reference.

    Raises ValueError for shapes that do not fit, a radius outside 0..max(H, W), a sigma, temperature or background
    that is not positive, and, on the CPU, for NaN or infinity and for a skewed camera. Raises TypeError for integer
    points.
    """
    require_points(_OP, "points", points)
    _require_cameras(points, world_to_cam, intrinsics)
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise TypeError(f"{_OP}: image_size must be a pair (H, W), got {image_size!r}")
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"{_OP}: image_size must be at least (1, 1), got ({height}, {width})")
    if not 0 <= radius <= max(height, width):
        raise ValueError(f"{_OP}: radius must be in [0, max(H, W)={max(height, width)}], got {radius}")
    if mode not in _MODES:
        raise ValueError(f"{_OP}: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    for name, value in (("sigma", sigma), ("temperature", temperature), ("background", background)):
        if not value > 0:
            raise ValueError(f"{_OP}: {name} must be positive, got {value}")
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    B, V = world_to_cam.shape[:2]
    depth, index, coverage, pixels, dropped, _ = torch.ops.jointmae.project_points(
        points.to(dtype),
        world_to_cam.to(dtype),
        intrinsics.to(dtype).expand(B, V, 3, 3),
        height,
        width,
        radius,
        mode,
        sigma,
        temperature,
        background,
    )
    return Projection(depth, index, pixels, dropped, coverage if mode == "soft" else None)


def _require_cameras(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor) -> None:
    B = points.shape[0]
    for name, matrices in (("world_to_cam", world_to_cam), ("intrinsics", intrinsics)):
        require_tensor(_OP, name, matrices)
        if not matrices.is_floating_point():
            raise TypeError(f"{_OP}: {name} must be floating point, got {matrices.dtype}")
    if world_to_cam.dim() != 4 or world_to_cam.shape[2:] != (3, 4) or world_to_cam.shape[1] == 0:
        raise ValueError(f"{_OP}: world_to_cam must have shape [B, V, 3, 4] with V >= 1, got {shape_of(world_to_cam)}")
    require_same(_OP, "points", points, "world_to_cam", world_to_cam)
    V = world_to_cam.shape[1]
    if intrinsics.shape != (3, 3) and intrinsics.shape != (B, V, 3, 3):
        raise ValueError(
            f"{_OP}: intrinsics must have shape [3, 3] or [B={B}, V={V}, 3, 3], got {shape_of(intrinsics)}"
        )
    if intrinsics.device != points.device:
        raise ValueError(
            f"{_OP}: points and intrinsics must be on one device, got {points.device} and {intrinsics.device}"
        )


def _check_values(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor) -> None:
    require_finite(_OP, "points", points)
    require_finite(_OP, "world_to_cam", world_to_cam)
    require_finite(_OP, "intrinsics", intrinsics)
    if values_are_checked(points) and intrinsics[..., 0, 1].any():
        raise ValueError(f"{_OP}: intrinsics must have no skew (element [0, 1] is 0), got {intrinsics[..., 0, 1]}")


def _spec(points: Tensor, world_to_cam: Tensor, height: int, width: int, radius: int, mode: str, *soft: float) -> Any:
    assert kernels is not None
    B, N, _ = points.shape
    return kernels.ProjectSpec(B, world_to_cam.shape[1], N, height, width, radius, _MODES.index(mode), *soft)


def _allocate(
    points: Tensor,
    world_to_cam: Tensor,
    height: int,
    width: int,
    mode: str,
    new_empty: NewEmpty = Tensor.new_empty,
) -> tuple[Tensor, ...]:
    """Uninitialised outputs; coverage is empty but in the mode soft.

    The last is the sum of weights that the backward of the modes soft and harmonic reads; it is empty in zbuffer.
    """
    B, N, _ = points.shape
    V = world_to_cam.shape[1]
    image = (B, V, height, width)
    return (
        new_empty(points, *image),
        new_empty(points, *image, dtype=torch.int32),
        new_empty(points, *(image if mode == "soft" else (0,))),
        new_empty(points, B, V, N, 2, dtype=torch.int32),
        new_empty(points, B, V, dtype=torch.int64),
        new_empty(points, *((0,) if mode == "zbuffer" else image)),
    )


def _reference(points: Tensor, world_to_cam: Tensor, intrinsics: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _check_values(points, world_to_cam, intrinsics)
    return reference.project_points(points, world_to_cam, intrinsics, *args)


def _cpu(
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> tuple[Tensor, ...]:
    points, world_to_cam, intrinsics = points.contiguous(), world_to_cam.contiguous(), intrinsics.contiguous()
    outputs = _allocate(points, world_to_cam, height, width, mode, native.new_empty)
    assert kernels is not None
    sound = kernels.project_points_cpu(
        address(points),
        address(world_to_cam),
        address(intrinsics),
        *map(address, outputs),
        _spec(points, world_to_cam, height, width, radius, mode, sigma, temperature, background),
        points.dtype == torch.float64,
        torch.get_num_threads(),
    )
    if not sound:  # or a coordinate in a camera's system overflows, and the point is dropped
        _check_values(points, world_to_cam, intrinsics)
    return outputs


def _cuda(
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> tuple[Tensor, ...]:
    if points.dtype == torch.float64:
        settings = (height, width, radius, mode, sigma, temperature, background)
        return _reference(points, world_to_cam, intrinsics, *settings)
    points, world_to_cam, intrinsics = points.contiguous(), world_to_cam.contiguous(), intrinsics.contiguous()
    _check_values(points, world_to_cam, intrinsics)
    outputs = _allocate(points, world_to_cam, height, width, mode)
    spec = _spec(points, world_to_cam, height, width, radius, mode, sigma, temperature, background)
    assert native.cuda is not None
    where = native.stream_of(points)
    num_bytes = native.cuda.project_points_workspace_cuda(spec, _PATH, *where)
    workspace = points.new_empty(num_bytes, dtype=torch.uint8)
    native.cuda.project_points_cuda(
        address(points),
        address(world_to_cam),
        address(intrinsics),
        *map(address, outputs),
        address(workspace),
        spec,
        _PATH,
        *where,
    )
    return outputs


def _fake(
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> tuple[Tensor, ...]:
    return _allocate(points, world_to_cam, height, width, mode)


def _backward_reference(*args: Any) -> Tensor:
    return reference.project_points_backward(*args)


def _backward_cpu(
    grad_depth: Tensor | None,
    grad_coverage: Tensor | None,
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    depth: Tensor,
    index: Tensor,
    weight_sum: Tensor,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> Tensor:
    grad_depth, grad_coverage = _contiguous(grad_depth), _contiguous(grad_coverage)
    points, world_to_cam, intrinsics = points.contiguous(), world_to_cam.contiguous(), intrinsics.contiguous()
    depth, index, weight_sum = depth.contiguous(), index.contiguous(), weight_sum.contiguous()
    B, V, height, width = depth.shape
    grad_points = torch.empty_like(points)
    grad_views = points.new_empty(B, V, points.shape[1], 3) if V > 1 else None  # scratch
    assert kernels is not None
    kernels.project_points_backward_cpu(
        address(grad_depth),
        address(grad_coverage),
        address(points),
        address(world_to_cam),
        address(intrinsics),
        address(depth),
        address(index),
        address(weight_sum),
        address(grad_views),
        address(grad_points),
        _spec(points, world_to_cam, height, width, radius, mode, sigma, temperature, background),
        points.dtype == torch.float64,
        torch.get_num_threads(),
    )
    return grad_points


def _backward_cuda(
    grad_depth: Tensor | None,
    grad_coverage: Tensor | None,
    points: Tensor,
    world_to_cam: Tensor,
    intrinsics: Tensor,
    depth: Tensor,
    index: Tensor,
    weight_sum: Tensor,
    radius: int,
    mode: str,
    sigma: float,
    temperature: float,
    background: float,
) -> Tensor:
    if points.dtype == torch.float64:
        saved = (points, world_to_cam, intrinsics, depth, index, weight_sum)
        settings = (radius, mode, sigma, temperature, background)
        return _backward_reference(grad_depth, grad_coverage, *saved, *settings)
    grad_depth, grad_coverage = _contiguous(grad_depth), _contiguous(grad_coverage)
    points, world_to_cam, intrinsics = points.contiguous(), world_to_cam.contiguous(), intrinsics.contiguous()
    depth, index, weight_sum = depth.contiguous(), index.contiguous(), weight_sum.contiguous()
    height, width = depth.shape[2:]
    grad_points = torch.empty_like(points)
    assert native.cuda is not None
    native.cuda.project_points_backward_cuda(
        address(grad_depth),
        address(grad_coverage),
        address(points),
        address(world_to_cam),
        address(intrinsics),
        address(depth),
        address(index),
        address(weight_sum),
        address(grad_points),
        _spec(points, world_to_cam, height, width, radius, mode, sigma, temperature, background),
        *native.stream_of(points),
    )
    return grad_points


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _backward_fake(grad_depth: Tensor | None, grad_coverage: Tensor | None, points: Tensor, *_: Any) -> Tensor:
    return points.new_empty(points.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    points, world_to_cam, intrinsics, _, _, *settings = inputs
    depth, index, coverage, pixels, dropped, weight_sum = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(index, pixels, dropped, weight_sum, *(() if "soft" in settings else (coverage,)))
    ctx.save_for_backward(points, world_to_cam, intrinsics, depth, index, weight_sum)
    ctx.settings = settings


def _backward(ctx: Any, grad_depth: Tensor | None, _1: Any, grad_coverage: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grad_points = None
    if ctx.needs_input_grad[0] and (grad_depth is not None or grad_coverage is not None):
        grad_points = torch.ops.jointmae.project_points_backward(
            grad_depth, grad_coverage, *ctx.saved_tensors, *ctx.settings
        )
    return grad_points, *(None,) * 9


define(
    "project_points(Tensor points, Tensor world_to_cam, Tensor intrinsics, int height, int width, int radius, "
    "str mode, float sigma, float temperature, float background) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
define(
    "project_points_backward(Tensor? grad_depth, Tensor? grad_coverage, Tensor points, Tensor world_to_cam, "
    "Tensor intrinsics, Tensor depth, Tensor index, Tensor weight_sum, int radius, str mode, float sigma, "
    "float temperature, float background) -> Tensor",
    reference=_backward_reference,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
