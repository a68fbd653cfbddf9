"""A small honest file of every format and variant, name -> bytes; a new format adds its own."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np

POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1]], np.float32)  # of a pyramid
QUAD, TRIANGLES = (0, 1, 2, 3), ((0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4))
POLYGONS = (QUAD, *TRIANGLES)
FACES = np.array([(0, 1, 2), (0, 2, 3), *TRIANGLES])  # [6, 3]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(compress: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return stream.getvalue()


def rows(separator: str = " ", extra: str = "") -> bytes:
    return "".join(separator.join(f"{x:g}" for x in point) + extra + "\n" for point in POINTS).encode()


def off(header: str = "OFF\n5 5 0") -> bytes:
    faces = "".join(f"{len(polygon)} {' '.join(map(str, polygon))}\n" for polygon in POLYGONS)
    return f"{header}\n".encode() + rows() + faces.encode()


def obj(relative: bool = False) -> bytes:
    vertices = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
    corners = [[i - 5 if relative else i + 1 for i in polygon] for polygon in POLYGONS]
    faces = "".join(f"f {' '.join(map(str, polygon))}\n" for polygon in corners)
    return f"# pyramid\nmtllib ../../etc/passwd\no one\n{vertices}usemtl x\n{faces}".encode()


def stl() -> bytes:
    records = np.zeros(6, [("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("colour", "<u2")])
    records["vertices"] = POINTS[FACES]
    return bytes(80) + struct.pack("<I", 6) + records.tobytes()


def stl_text() -> bytes:
    triangle = "facet normal 0 0 1\nouter loop\n{}endloop\nendfacet\n"
    vertices = ["".join(f"vertex {x:g} {y:g} {z:g}\n" for x, y, z in POINTS[face]) for face in FACES]
    return f"solid pyramid\n{''.join(map(triangle.format, vertices))}endsolid pyramid\n".encode()


def ply_header(order: str, vertices: int = 5, faces: int = 5) -> bytes:
    xyz = "property float x\nproperty float y\nproperty float z\n"
    lists = f"element face {faces}\nproperty list uchar int vertex_indices\n" if faces else ""
    return f"ply\nformat {order} 1.0\ncomment c\nelement vertex {vertices}\n{xyz}{lists}end_header\n".encode()


def ply_text() -> bytes:
    faces = "".join(f"{len(polygon)} {' '.join(map(str, polygon))}\n" for polygon in POLYGONS)
    return ply_header("ascii") + rows() + faces.encode()


def ply(order: str = "<", polygons: Any = POLYGONS) -> bytes:
    name = "binary_little_endian" if order == "<" else "binary_big_endian"
    faces = b"".join(struct.pack(f"{order}B{len(polygon)}i", len(polygon), *polygon) for polygon in polygons)
    return ply_header(name, faces=len(polygons)) + POINTS.astype(f"{order}f4").tobytes() + faces


def glb(scene: dict[str, Any] | bytes, buffer: bytes = b"") -> bytes:
    text = scene if isinstance(scene, bytes) else json.dumps(scene).encode()
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(buffer), b"BIN\0") + buffer
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def glb_scene() -> tuple[dict[str, Any], bytes]:
    """A pyramid, shown as it is and once more at (10, 0, 0), twice as large."""
    vertices, corners = POINTS.astype("<f4").tobytes(), FACES.astype("<u2").tobytes()
    views = [
        {"buffer": 0, "byteOffset": 0, "byteLength": len(vertices)},
        {"buffer": 0, "byteOffset": len(vertices), "byteLength": len(corners)},
    ]
    accessors = [
        {"bufferView": 0, "componentType": 5126, "count": 5, "type": "VEC3"},
        {"bufferView": 1, "componentType": 5123, "count": 18, "type": "SCALAR"},
    ]
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "children": [1]}, {"mesh": 0, "translation": [10, 0, 0], "scale": [2, 2, 2]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(vertices) + len(corners)}],
    }
    return scene, vertices + corners


def las(num_points: int = 5, point_format: int = 0, **fields: Any) -> bytes:
    """Version 1.2, scale 0.5, offset (1e6, 2e6, 0)."""
    scaled = (POINTS * 2).astype("<i4")
    points = b"".join(point.tobytes() + bytes(8) for point in scaled)
    header = bytearray(227)
    struct.pack_into("<4s", header, 0, b"LASF")
    header[24:26] = bytes([1, 2])
    declared = {"header_bytes": 227, "start": 227, "vlrs": 0, "format": point_format, "record": 20} | fields
    struct.pack_into("<HIIBHI", header, 94, *declared.values(), num_points)
    struct.pack_into("<6d", header, 131, 0.5, 0.5, 0.5, 1e6, 2e6, 0)
    return bytes(header) + points


def wrl_face_set() -> str:
    points = ", ".join(f"{x:g} {y:g} {z:g}" for x, y, z in POINTS)
    corners = ", ".join(f"{', '.join(map(str, polygon))}, -1" for polygon in POLYGONS)
    return f"IndexedFaceSet {{ coord Coordinate {{ point [ {points} ] }} coordIndex [ {corners} ] solid FALSE }}"


def wrl(body: str = "") -> bytes:
    return f"#VRML V2.0 utf8\n{body or f'Shape {{ geometry {wrl_face_set()} }}'}\n".encode()


WRL_NESTED = f"""\
WorldInfo {{ info [ "a }} in \\" a # string" ] }} # and a }} in a comment
PROTO Dot [ field SFColor c 1 0 0 ] {{ Shape {{ geometry Sphere {{ }} }} }}
Transform {{
  translation 0 0 0 rotation 0 0 1, 0 scale 1 1 1 center 5 5 5
  children [ DEF A Group {{ children Shape {{
      appearance Appearance {{ material DEF M Material {{ diffuseColor 1 0 0 }} }} geometry {wrl_face_set()}
  }} }} ]
}}
Switch {{ whichChoice -1 choice [ USE A USE A ] }}
ROUTE A.x TO B.y"""


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "."), data)
    return stream.getvalue()


EXAMPLES: dict[str, bytes] = {
    "fortran.npy": npy(np.asfortranarray(POINTS)),
    "pyramid.npy": npy(POINTS),
    "pyramid.npz": npz(points=POINTS),
    "compressed.npz": npz(compress=True, points=POINTS, other=POINTS),
    "pyramid.xyz": rows(),
    "pyramid.txt": rows(",", ",0,0,1"),
    "pyramid.pts": b"5\n" + rows(),
    "pyramid.csv": b"x,y,z\n" + rows(","),
    "pyramid.off": off(),
    "modelnet.off": off("OFF5 5 0"),
    "pyramid.obj": obj(),
    "relative.obj": obj(relative=True),
    "pyramid.stl": stl(),
    "text.stl": stl_text(),
    "pyramid.ply": ply(),
    "big.ply": ply(">"),
    "triangles.ply": ply(polygons=[tuple(face) for face in FACES]),
    "text.ply": ply_text(),
    "cloud.ply": ply_header("binary_little_endian", faces=0) + POINTS.astype("<f4").tobytes(),
    "pyramid.glb": glb(*glb_scene()),
    "pyramid.las": las(),
    "pyramid.wrl": wrl(),
    "nested.wrl": wrl(WRL_NESTED),
}
