"""jointmae: 2D-3D joint masked autoencoders for point clouds (Guo et al., IJCAI 2023), with its own kernels.

Importing this package does not import torch, so that `--help` is instant; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {"JointMAE": "jointmae.model", "Features": "jointmae.model", "ops": "jointmae.ops"}
__all__ = ["Features", "JointMAE", "__version__", "ops"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jointmae' has no attribute '{name}'")
    module = import_module(_LAZY[name])
    return module if name == "ops" else getattr(module, name)
