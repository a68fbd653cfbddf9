"""Point clouds: read from files through one hardened gate, held on one device, drawn as batches, augmented.

Names are loaded when first used, so that `python -m jointmae.data --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointmae.data.augment import scale_and_shift
    from jointmae.data.dataset import PointClouds, concat
    from jointmae.data.hdf5 import open_hdf5
    from jointmae.data.loading import load, splits_of
    from jointmae.data.normalize import normalize_unit_sphere

_LAZY = {
    "PointClouds": "dataset",
    "concat": "dataset",
    "load": "loading",
    "normalize_unit_sphere": "normalize",
    "open_hdf5": "hdf5",
    "scale_and_shift": "augment",
    "splits_of": "loading",
}
__all__ = [
    "PointClouds",
    "concat",
    "load",
    "normalize_unit_sphere",
    "open_hdf5",
    "scale_and_shift",
    "splits_of",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jointmae.data' has no attribute '{name}'")
    return getattr(import_module(f"jointmae.data.{_LAZY[name]}"), name)
