"""Files of one cloud or mesh, one format a file, from their bytes.

A reader gets bytes and never a path, so no file can make it open another one: materials, textures, external buffers
and resolvers do not exist here. Most of a reader is the comparison of declared sizes with the bytes that are there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointmae.data.shapes.read import SUFFIXES, read_shape
    from jointmae.data.shapes.shape import Shape

_LAZY = {"SUFFIXES": "read", "Shape": "shape", "read_shape": "read"}
__all__ = ["SUFFIXES", "Shape", "read_shape"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jointmae.data.shapes' has no attribute '{name}'")
    return getattr(import_module(f"jointmae.data.shapes.{_LAZY[name]}"), name)
