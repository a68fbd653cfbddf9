"""Files of one cloud or mesh from their bytes: what was written is read, what lies is refused, nothing is opened."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import laspy
import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jointmae.data.sample import sample_surface
from jointmae.data.shapes import read_shape
from jointmae.data.shapes.read import SUFFIXES
from jointmae.data.shapes.shape import Shape
from jointmae.errors import DataError
from tests.shape_files import EXAMPLES, FACES, POINTS, glb, glb_scene, las, npy, npz

CLOUDS = {"npy", "npz", "xyz", "txt", "pts", "csv", "las"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_the_pyramid(name: str) -> None:
    shape = read_shape(name, EXAMPLES[name])
    suffix = name.rpartition(".")[2]
    assert (shape.faces is None) == (suffix in CLOUDS or name == "cloud.ply")
    if suffix == "las":
        np.testing.assert_array_equal(shape.points, POINTS + np.array([1e6, 2e6, 0]))
    elif suffix == "glb":  # once as it is, once moved and larger
        corners = shape.points[shape.faces]
        expected = POINTS[FACES]
        np.testing.assert_allclose(corners, np.concatenate([expected, expected * 2 + [10, 0, 0]]))
    elif shape.faces is None:
        np.testing.assert_array_equal(shape.points, POINTS)
    else:  # STL has a vertex a corner
        np.testing.assert_array_equal(shape.points[shape.faces], POINTS[FACES])


def test_there_is_an_example_of_every_format() -> None:
    assert {PurePosixPath(name).suffix for name in EXAMPLES} | {".wrl"} == set(SUFFIXES)  # test_vrml.py has the last


finite = st.floats(-(2.0**60), 2.0**60, width=32)
clouds = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=finite)


@settings(max_examples=25, deadline=None)
@given(clouds)
def test_what_numpy_and_trimesh_write_is_read_again(points: np.ndarray[Any, Any]) -> None:
    text = io.BytesIO()
    np.savetxt(text, points, fmt="%.9g")
    ply = trimesh.PointCloud(points).export(file_type="ply")
    for name, data in {"a.npy": npy(points), "a.npz": npz(points=points), "a.xyz": text.getvalue()}.items():
        np.testing.assert_array_equal(read_shape(name, data).points.astype(np.float32), points)  # a text is float64
    np.testing.assert_array_equal(read_shape("a.ply", ply).points, points)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["ply", "stl", "off", "obj", "glb"]))
def test_meshes_that_trimesh_writes_are_read_again(seed: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    vertices = generator.normal(size=(6, 3)).astype(np.float32)
    mesh = trimesh.Trimesh(vertices, generator.permuted(np.tile(np.arange(6), (4, 1)), axis=1)[:, :3], process=False)
    data = mesh.export(file_type=kind, **({"digits": 9} if kind in ("off", "obj") else {}))
    shape = read_shape(f"a.{kind}", data.encode() if isinstance(data, str) else data)
    np.testing.assert_allclose(shape.points[shape.faces], vertices[mesh.faces], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(arrays(np.int32, st.tuples(st.integers(1, 5), st.just(3)), elements=st.integers(-(10**6), 10**6)))
def test_what_laspy_writes_is_read_again(steps: np.ndarray[Any, Any]) -> None:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.01] * 3, [5e5, 5e6, 0]
    cloud, stream = laspy.LasData(header), io.BytesIO()
    cloud.X, cloud.Y, cloud.Z = steps.T
    cloud.write(stream, do_compress=False)
    expected = steps * 0.01 + np.array([5e5, 5e6, 0])
    np.testing.assert_allclose(read_shape("a.las", stream.getvalue()).points, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-38, 1e38])
def test_strange_numbers_are_left_to_the_loader(value: float) -> None:
    points = np.full((2, 3), value, np.float32)
    np.testing.assert_array_equal(read_shape("a.npy", npy(points)).points, points)
    np.testing.assert_allclose(read_shape("a.xyz", f"{value} 1 2\n".encode()).points[0, 0], value, rtol=1e-6)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def scene(**changes: Any) -> bytes:
    changed, buffer = glb_scene()
    return glb(changed | changes, buffer)


PLY = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
HOSTILE: dict[str, tuple[str, bytes]] = {
    "no bytes": ("a.npy", b""),
    "npy bomb": ("a.npy", npy_header("(999999999999, 3)")),
    "npy negative": ("a.npy", npy_header("(-1, 3)")),
    "npy overflow": ("a.npy", npy_header("(2**62, 3)")),
    "npy empty": ("a.npy", npy(np.zeros((0, 3), np.float32))),
    "npy objects": ("a.npy", npy(np.array([{}], dtype=object))),
    "npy two columns": ("a.npy", npy(np.zeros((5, 2)))),
    "npz bomb": ("a.npz", npz(compress=True, points=np.zeros((20_000_000, 3), np.float32))[:-40]),
    "ply bomb": ("a.ply", PLY.format("binary_little_endian", 999_999_999_999).encode() + bytes(24)),
    "ply text bomb": ("a.ply", PLY.format("ascii", 999_999_999_999).encode() + b"0 0 0\n"),
    "ply negative": ("a.ply", PLY.format("ascii", -5).encode()),
    "ply none": ("a.ply", PLY.format("ascii", 0).encode()),
    "off bomb": ("a.off", b"OFF\n999999999999 1 0\n0 0 0\n"),
    "off faces": ("a.off", b"OFF\n3 999999999999 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
    "off index": ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n"),
    "off negative": ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n"),
    "obj index": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n"),
    "obj relative": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -9\n"),
    "obj zero": ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 0 1 2\n"),
    "stl bomb": ("a.stl", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50)),
    "las bomb": ("a.las", las(num_points=2**32 - 1)),
    "las record": ("a.las", las(record=3)),
    "las start": ("a.las", las(start=2**31)),
    "las vlrs": ("a.las", las(vlrs=2**31)),
    "text of words": ("a.xyz", b"a b c\nd e f\n"),
    "text of spaces that Latin-1 has": ("a.xyz", b"a b c\n\xa0\n"),
    "text of two": ("a.xyz", b"1 2\n3 4\n"),
    "text ragged": ("a.xyz", b"1 2 3\n4 5\n"),
    "glb empty accessor": (
        "a.glb", scene(accessors=[{"componentType": 5126, "count": 10**9, "type": "VEC3"}] * 2)),
    "glb accessor": (
        "a.glb", scene(accessors=[{"bufferView": 0, "componentType": 5126, "count": 10**9, "type": "VEC3"}] * 2)),
    "glb cycle": ("a.glb", scene(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}])),
    "glb bomb": (
        "a.glb", scene(nodes=[{"children": [i + 1] * 20} for i in range(12)] + [{"mesh": 0}])),
    "glb outside": ("a.glb", scene(buffers=[{"byteLength": 96, "uri": "file:///etc/passwd"}])),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_lie_are_refused_and_take_little_memory(case: str) -> None:
    name, data = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read_shape(name, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.file == name and len(str(caught.value)) > len(name) + 10
    assert peak < 64 * 2**20 + 4 * len(data)


READ_ALL = """
import os, sys
from pathlib import Path
import laspy, numpy, trimesh
from jointmae.data.shapes import read_shape
from jointmae.errors import DataError
for path in sorted(Path(sys.argv[1]).iterdir()):  # all that is imported late is imported now
    try: read_shape(path.name, path.read_bytes())
    except DataError: pass
files = [(path.name, path.read_bytes()) for path in sorted(Path(sys.argv[1]).iterdir())]
seen = []
names = ("open", "pickle.find_class", "marshal.loads", "os.listdir", "subprocess.Popen", "socket.connect", "import")
sys.addaudithook(lambda event, args: seen.append((event, *map(str, args[:1]))) if event in names else None)
for name, data in files:
    try: read_shape(name, data)
    except DataError: pass
assert not seen, seen[:5]
print(len(files))
"""


class Canary:
    """What unpickling would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_opened_and_nothing_unpickled(tmp_path: Path) -> None:
    folder, canary = tmp_path / "files", Canary(tmp_path / "canary")
    folder.mkdir()
    for name, data in EXAMPLES.items():
        (folder / name).write_bytes(data)
    payloads = [pickle.dumps(canary, protocol) for protocol in range(6)]
    for i, suffix in enumerate(SUFFIXES):
        for j in range(3):
            (folder / f"pickle{j}{suffix}").write_bytes(payloads[(i + j) % 6])
    objects = np.empty(1, dtype=object)
    objects[0] = canary
    (folder / "objects.npy").write_bytes(npy(objects))
    (folder / "objects.npz").write_bytes(npz(points=objects))
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(EXAMPLES) + 3 * len(SUFFIXES) + 2 >= len(EXAMPLES) + 38
    assert not canary.path.exists()


# Sampling


SQUARE = Shape(np.array([[0, 0, 0], [4, 0, 0], [0, 1, 0], [9, 9, 9], [0, 0, 3]], np.float32),
               np.array([[0, 1, 2], [3, 3, 3], [0, 2, 4]]))  # fmt: skip


def test_samples_lie_on_the_surface_by_area() -> None:
    points = sample_surface(SQUARE, 4000, seed=0)
    assert points.shape == (4000, 3) and points.dtype == np.float32
    on_first = np.isclose(points[:, 2], 0) & (points[:, 0] / 4 + points[:, 1] <= 1 + 1e-6)
    on_last = np.isclose(points[:, 0], 0) & (points[:, 1] + points[:, 2] / 3 <= 1 + 1e-6)
    assert (on_first | on_last).all()  # none on the face without area
    assert abs((points[:, 2] == 0).mean() - 2 / 3.5) < 0.03
    assert abs(points[points[:, 2] == 0][:, 0].mean() - 4 / 3) < 0.05  # the centre of the triangle


def test_samples_depend_on_the_seed_alone() -> None:
    np.testing.assert_array_equal(sample_surface(SQUARE, 50, 7), sample_surface(SQUARE, 50, 7))
    assert (sample_surface(SQUARE, 50, 7) != sample_surface(SQUARE, 50, 8)).any()


def test_what_cannot_be_sampled_is_an_error() -> None:
    with pytest.raises(ValueError, match="got a cloud"):
        sample_surface(Shape(POINTS), 5, 0)
    with pytest.raises(ValueError, match="no area"):
        sample_surface(Shape(POINTS, np.array([[0, 0, 1]])), 5, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        sample_surface(Shape(np.full((3, 3), np.nan, np.float32), np.array([[0, 1, 2]])), 5, 0)
