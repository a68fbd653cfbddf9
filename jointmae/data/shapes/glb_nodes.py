"""Which meshes the scene of a glTF file shows, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.glb_buffers import the_item
from jointmae.errors import DataError

MAX_NODES = 1_000_000
"""Nodes of one scene; each costs some microseconds."""

Transform = NDArray[np.float64]  # [4, 4], applied to columns


def placed_meshes(name: str, scene: dict[str, Any]) -> list[tuple[int, Transform]]:
    """The numbers of the meshes shown and the transforms from their space to the world's, in the file's order.

    A file without nodes shows each mesh once. Raises DataError for a node that is reached twice: a cycle, or one of
    the nested copies by which a few lines would ask for billions of meshes.
    """
    if not scene.get("nodes"):
        return [(i, np.eye(4)) for i in range(len(scene.get("meshes", [])))]
    todo = [(node, np.eye(4)) for node in reversed(_roots(scene))]
    seen: set[int] = set()
    placed = []
    while todo:
        index, parent = todo.pop()
        node = the_item(scene, "nodes", index)
        if index in seen or len(seen) >= MAX_NODES:
            what = "is reached twice: nodes must form a tree" if index in seen else f"is one of over {MAX_NODES:,}"
            raise DataError(name, f"node {index}", f"{what}; export it again")
        seen.add(index)
        with np.errstate(all="ignore"):
            transform = parent @ _transform(node)
        if "mesh" in node:
            placed.append((node["mesh"], transform))
        todo += [(child, transform) for child in reversed(_indices(node.get("children", [])))]
    return placed


def _roots(scene: dict[str, Any]) -> list[int]:
    """The nodes at the top of the scene that is shown; of all nodes where the file has no scene."""
    if scene.get("scenes"):
        return _indices(the_item(scene, "scenes", scene.get("scene", 0)).get("nodes", []))
    children = {child for node in scene["nodes"] for child in _indices(node.get("children", []))}
    return [node for node in range(len(scene["nodes"])) if node not in children]


def _indices(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("nodes are not a list of numbers")
    return values


def _transform(node: dict[str, Any]) -> Transform:
    """A node's own matrix, or its translation, rotation (a unit quaternion x y z w) and scale."""
    if "matrix" in node:
        matrix: Transform = _numbers(node, "matrix", (0,) * 16).reshape(4, 4).T  # stored column after column
        return matrix
    x, y, z, w = _numbers(node, "rotation", (0, 0, 0, 1))
    transform = np.eye(4)
    transform[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    transform[:3, :3] *= _numbers(node, "scale", (1, 1, 1))
    transform[:3, 3] = _numbers(node, "translation", (0, 0, 0))
    return transform


def _numbers(node: dict[str, Any], key: str, default: tuple[int, ...]) -> NDArray[np.float64]:
    values = node.get(key, default)
    if len(values) != len(default) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{key} is {str(values)[:40]}")
    return np.array(values, np.float64)
