"""Pictures of clouds and depth maps as PNG bytes. n points of a cloud, S the side of a picture or a depth map.

Points are drawn as small lit spheres, near ones over far ones: a cloud of a thousand points is then recognisable
at the size of a thumbnail, on a light and on a dark page alike.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
Bytes = NDArray[np.uint8]

SIDE = 320  # pixels of a cloud's picture; the page shows it at about half of that
_OVERSAMPLE = 2  # samples a pixel along each axis, for smooth edges
_LIGHT = np.array([-0.38, -0.66, -0.65])  # from the upper left, behind the viewer; y points down, z away
_HIDDEN_GREY = (128, 128, 128)


def colors_by_height(height: Array) -> Array:
    """RGB [n, 3] in [0, 1] for heights [n]: a perceptually uniform map without its darkest and brightest ends."""
    span = np.ptp(height) or 1.0
    colors: Array = matplotlib.colormaps["viridis"](0.18 + 0.72 * (height - height.min()) / span)[:, :3]
    return colors


def spheres_png(points: Array, colors: Array, radius: float) -> bytes:
    """Spheres at `points` [n, 3], x right, y down, z away, all within [-1, 1], orthographic, on a clear background.

    `colors` [n, 3] are RGB in [0, 1]; `radius` is in units of the points.
    """
    S = SIDE * _OVERSAMPLE
    order = np.argsort(-points[:, 2], kind="stable")  # painter's order: the nearest last
    canvas = np.zeros((S * S, 4))
    _paint(canvas, S, points[order], colors[order], radius * S / 2)
    return png(_downsample(canvas.reshape(S, S, 4)))


def _paint(canvas: Array, S: int, points: Array, colors: Array, radius: float) -> None:
    """Paints spheres of `radius` pixels, one over the other in the order given, on RGBA `canvas` [S * S, 4]."""
    reach = int(np.ceil(radius)) + 1
    steps = np.arange(-reach, reach + 1)
    dx, dy = (d.ravel() for d in np.meshgrid(steps, steps))  # [f], the footprint
    center = (points[:, :2] + 1) * S / 2  # [n, 2]
    corner = np.floor(center)
    px, py = corner[:, :1] + dx, corner[:, 1:] + dy  # [n, f]
    nx, ny = (px + 0.5 - center[:, :1]) / radius, (py + 0.5 - center[:, 1:]) / radius
    inside = (nx**2 + ny**2 <= 1) & (px >= 0) & (px < S) & (py >= 0) & (py < S)
    nz = -np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    lit = np.clip(nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2], 0, 1)
    fade = 0.92 - 0.24 * points[:, 2:]  # [n, 1], far points are darker
    shade = (fade * (0.52 + 0.56 * lit))[..., None] * colors[:, None]  # [n, f, 3]
    where = (py * S + px).astype(np.int64)[inside]
    canvas[where] = np.concatenate([shade, np.ones((*shade.shape[:2], 1))], axis=-1)[inside]


def _downsample(canvas: Array) -> Bytes:
    """Means over samples, weighted by alpha: RGBA [SIDE, SIDE, 4] of bytes."""
    blocks: Array = canvas.reshape(SIDE, _OVERSAMPLE, SIDE, _OVERSAMPLE, 4)
    mean = blocks.mean(axis=(1, 3))  # colours are 0 where alpha is: this is premultiplied
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
    return _bytes(mean)


def _bytes(values: Array) -> Bytes:
    """[0, 1] to 0..255."""
    levels: Bytes = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return levels


def depth_png(image: Array, hidden: NDArray[np.bool_] | None = None) -> bytes:
    """A unit depth map [1, S, S] through a colour map, or an RGB one [3, S, S] as it is; `hidden` [S, S] is grey."""
    return png(depth_pixels(image, hidden))


def depth_pixels(image: Array, hidden: NDArray[np.bool_] | None = None) -> Bytes:
    """The same before it is a PNG: RGB of bytes, [S, S, 3] times a whole number."""
    levels = _bytes(image)
    pixels: Bytes = levels.transpose(1, 2, 0).copy()
    if len(levels) == 1:
        pixels = _bytes(matplotlib.colormaps["magma"](levels[0])[..., :3])
    if hidden is not None:
        pixels[hidden] = _HIDDEN_GREY
    factor = max(1, SIDE // len(pixels))  # pixels stay sharp squares, whatever the browser does
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def png(pixels: Bytes) -> bytes:
    """PNG of at most 256 colours: a third of the bytes of one with all of them, and hard to tell apart."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
