"""VRML 2.0 (.wrl): the triangles of its IndexedFaceSets, where its Transforms put them. Nothing else is opened.

Read are Shape, IndexedFaceSet and Coordinate below Transform, Group, Switch and what else groups, with DEF and USE.
Looks, lights, lines, points, scripts and routes are passed over. A surface that is described in another way (Box,
Inline, a PROTO) is an error: without it the shape would be another one. Polygons become fans, as if they were convex.

Depth and size of the input are never the depth of a recursion, nor, through USE, more than MAX_VERTICES and MAX_FACES.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.polygons import triangulate
from jointmae.data.shapes.shape import Shape
from jointmae.data.shapes.vrml_nodes import CHILDREN, Node, parse
from jointmae.errors import DataError

MAX_VERTICES = MAX_FACES = 10_000_000  # of a whole file, each USE counted again
MAX_USES = 300_000  # nodes met on all ways from the root

_DAMAGED = "the file is damaged, export it again"
_SURFACES = {"Box", "Cone", "Cylinder", "ElevationGrid", "Extrusion", "Sphere", "Text", "Inline"}
_REST = {"scale": [1.0, 1.0, 1.0], "rotation": [0.0, 0.0, 1.0, 0.0], "scaleOrientation": [0.0, 0.0, 1.0, 0.0]}

Matrix = NDArray[np.float64]  # [4, 4], from a node to the root


def read_vrml(name: str, data: bytes) -> Shape:
    """The mesh in a VRML 2.0 file; vertices float64, those of a face set together, in the order of the file.

    Raises DataError for another version, broken syntax, an index out of range, a USE without a DEF, a surface that is
    not an IndexedFaceSet, a file without faces, and one that holds or multiplies more than the bounds.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused at the end
        return _joined(name, parse(name, data))


def _joined(name: str, root: Node) -> Shape:
    meshes: dict[Node, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
    vertices: list[NDArray[np.float64]] = []
    faces: list[NDArray[np.int64]] = []
    num_vertices = num_faces = 0
    for geometry, matrix in _face_sets(name, root):
        if geometry not in meshes:
            meshes[geometry] = _mesh(name, geometry)
        points, triangles = meshes[geometry]
        num_vertices, num_faces = num_vertices + len(points), num_faces + len(triangles)
        if num_vertices > MAX_VERTICES or num_faces > MAX_FACES:
            limits = f"{MAX_VERTICES:,} vertices and {MAX_FACES:,} triangles"
            raise DataError(name, "", f"got more than {limits}, each USE counted: simplify the mesh")
        faces.append(triangles + (num_vertices - len(points)))
        vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
    if num_faces == 0:
        raise DataError(name, "", "got no face, wanted an IndexedFaceSet with polygons: export it as a mesh")
    shape = Shape(np.concatenate(vertices), np.concatenate(faces))
    if not np.isfinite(shape.points).all():
        raise DataError(name, "", f"its Transforms make coordinates infinite: {_DAMAGED}")
    return shape


def _face_sets(name: str, root: Node) -> Iterator[tuple[Node, Matrix]]:
    """Every IndexedFaceSet in the order of the file, as often as it is used, with its way to the root."""
    todo, met = [(root, np.eye(4))], 0
    while todo:
        node, matrix = todo.pop()
        met += 1
        if met > MAX_USES:
            raise DataError(name, "", f"got more than {MAX_USES:,} nodes, each USE counted: is it a single shape?")
        if node.kind in _SURFACES or node.is_instance:
            what = "another file" if node.kind == "Inline" else f"a surface of kind {node.kind!r}"
            raise DataError(name, node.kind, f"got {what}, wanted IndexedFaceSets only: export it as a mesh")
        if node.kind == "IndexedFaceSet":
            yield node, matrix
            continue
        if node.kind == "Transform":
            matrix = matrix @ _local(node)
        todo += [(child, matrix) for child in reversed(_children(name, node))]


def _children(name: str, node: Node) -> list[Node]:
    """The nodes below one that may hold a surface."""
    children = [child for field in CHILDREN.get(node.kind, ()) for child in node.children.get(field, [])]
    for child in children:
        if child.kind == "USE":
            raise DataError(name, f"USE {child.label}", f"there is no DEF before it: {_DAMAGED}")
    if node.kind == "LOD":
        return children[:1]
    if node.kind == "Switch":
        chosen = int(node.number("whichChoice", [-1.0])[0])
        return children[chosen : chosen + 1] if chosen >= 0 else []
    return children


def _local(node: Node) -> Matrix:
    """As translation · center · rotation · scaleOrientation · scale · -scaleOrientation · -center (ISO/IEC 14772-1)."""
    center = node.number("center", [0.0, 0.0, 0.0])
    orientation = _rotation(node.number("scaleOrientation", _REST["scaleOrientation"]))
    rotation = _rotation(node.number("rotation", _REST["rotation"]))
    matrix = np.eye(4)
    scale = np.asarray(node.number("scale", _REST["scale"]))
    matrix[:3, :3] = rotation @ (orientation * scale) @ orientation.T
    matrix[:3, 3] = np.add(center, node.number("translation", [0.0, 0.0, 0.0])) - matrix[:3, :3] @ center
    return matrix


def _rotation(axis_angle: list[float]) -> NDArray[np.float64]:
    """The matrix [3, 3] of a rotation about an axis, by Rodrigues' formula; no axis, no rotation."""
    axis = np.asarray(axis_angle[:3])
    length = np.sqrt(axis @ axis)
    if not length > 0:
        return np.eye(3)
    x, y, z = axis / length
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = axis_angle[3]
    matrix: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return matrix


def _mesh(name: str, node: Node) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices [N, 3] and triangles [F, 3] of one IndexedFaceSet, every index in range."""
    coords = [child for child in node.children.get("coord", []) if child.kind in ("Coordinate", "USE")]
    if coords and coords[0].kind == "USE":
        raise DataError(name, f"USE {coords[0].label}", f"there is no DEF before it: {_DAMAGED}")
    points = coords[0].array("point") if coords else np.empty(0)
    if len(points) % 3:
        raise DataError(name, "point", f"got {len(points)} numbers, wanted three a point: {_DAMAGED}")
    indices = node.array("coordIndex")  # [n], -1 ends a polygon
    whole = indices == np.floor(indices)
    if not whole.all():
        raise DataError(name, "coordIndex", f"got {indices[int(np.argmin(whole))]:g}, wanted integers: {_DAMAGED}")
    ends = np.flatnonzero(np.append(indices, -1) == -1)  # an end behind the last polygon, needed or not
    sizes = np.diff(ends, prepend=-1) - 1
    corners = indices[indices != -1].astype(np.int64)
    return points.reshape(-1, 3), triangulate(name, sizes, corners, len(points) // 3)
