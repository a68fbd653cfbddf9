"""VRML 2.0: the triangles where its Transforms put them, or a DataError; bombs cost neither time nor memory."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from jointmae.data.shapes import read_shape, vrml, vrml_nodes
from jointmae.data.shapes.vrml import read_vrml
from jointmae.errors import DataError
from tests.shape_files import EXAMPLES, FACES, POINTS, wrl

TRIANGLE = "IndexedFaceSet { coord Coordinate { point [1 2 3, 4 5 6, 7 8 10] } coordIndex [0 1 2 -1] }"
CORNERS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]], float)


def shape(geometry: str = TRIANGLE) -> str:
    return f"Shape {{ geometry {geometry} }}"


def points_of(body: str) -> np.ndarray:
    return read_vrml("a.wrl", wrl(body)).points


@pytest.mark.parametrize("name", ["pyramid.wrl", "nested.wrl"])
def test_a_mesh_is_read_as_it_is(name: str) -> None:
    mesh = read_shape(name, EXAMPLES[name])
    assert mesh.points.dtype == np.float64 and mesh.faces is not None and mesh.faces.dtype == np.int64
    np.testing.assert_array_equal(mesh.points, POINTS)
    np.testing.assert_array_equal(mesh.faces, FACES)


@pytest.mark.parametrize(
    ("indices", "triangles"),
    [
        ("0 1 2", [[0, 1, 2]]),  # the last -1 may be missing
        ("0,1,2,-1,-1,", [[0, 1, 2]]),
        ("-1 0 1 -1 2 -1 3 2 1 0 -1", [[3, 2, 1], [3, 1, 0]]),  # lines and points are no polygons
        ("0 1 2 # 3 -1 ]\n -1", [[0, 1, 2]]),
    ],
)
def test_polygons_become_fans(indices: str, triangles: list[list[int]]) -> None:
    body = shape(f"IndexedFaceSet {{ coordIndex [{indices}] coord Coordinate {{ point [0 0 0 1 0 0 1 1 0 0 1 0] }} }}")
    assert read_vrml("a.wrl", wrl(body)).faces.tolist() == triangles


def test_a_transform_scales_about_its_center_then_turns_then_moves() -> None:
    """(p - c) -> scaled along axes turned by scaleOrientation -> turned -> + c + t, written out by hand."""
    body = (
        "Transform { translation 10 20 30 center 1 1 1 scale 2 1 1 scaleOrientation 0 0 2 1.5707963267948966 "
        f"rotation 1 0 0 1.5707963267948966 children {shape()} }}"
    )
    x, y, z = (CORNERS - 1).T
    x, y = x, 2 * y  # the first axis, turned by 90 degrees about z, is y
    expected = np.stack([x, -z, y], 1) + 1 + [10, 20, 30]  # 90 degrees about x
    np.testing.assert_allclose(points_of(body), expected, atol=1e-12)


def test_transforms_nest_and_a_use_is_another_copy() -> None:
    body = (
        f"Transform {{ scale 2 2 2 children [ DEF T Transform {{ translation 1 0 0 children {shape()} }} "
        "Group { children [ Transform { rotation 0 0 1 3.141592653589793 children USE T } ] } ] }"
    )
    moved = 2 * (CORNERS + [1, 0, 0])
    np.testing.assert_allclose(points_of(body), np.concatenate([moved, moved * [-1, -1, 1]]), atol=1e-12)
    assert read_vrml("a.wrl", wrl(body)).faces.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "body",
    [
        f"Switch {{ whichChoice 1 choice [ {shape('Box { }')} {shape()} {shape('Box { }')} ] }}",
        f"LOD {{ range [5] level [ {shape()} {shape('Box { }')} ] }}",
        f"Collision {{ proxy {shape('Box { }')} children Billboard {{ children Anchor {{ children {shape()} }} }} }}",
        f"Shape {{ geometry IndexedLineSet {{ coord DEF C {TRIANGLE.split('coord ')[1].split(' coordIndex')[0]} }} }}"
        + shape("IndexedFaceSet { coord USE C coordIndex [0 1 2] }"),
        f'Script {{ url "javascript: }}" field SFNode n USE X eventIn SFBool b }} {shape()}',
        f'EXTERNPROTO Foo [ exposedField SFVec3f v ] [ "http://localhost/x.wrl" ] {shape()}',
        f"DEF A-1_<é> Group {{ children {shape()} }} Foo {{ bar [ Baz {{ a [1 2] }} ] c TRUE d NULL }}",
        f"PointLight {{ location 1 2 3 }} {shape()} Shape {{ geometry PointSet {{ coord Coordinate {{ }} }} }}",
        f'Shape {{ appearance Appearance {{ texture ImageTexture {{ url "../../x.png" }} }} geometry {TRIANGLE} }}',
        shape(TRIANGLE.replace("[1 2 3, 4", "[1 2 3 # one ] \n, 4").replace("{ coord", "{convex FALSE coord")),
    ],
)
def test_what_is_no_surface_is_passed_over(body: str) -> None:
    np.testing.assert_array_equal(points_of(body), CORNERS)


BAD = [
    (shape(TRIANGLE.replace("0 1 2", "0 1 3")), "face 0: got vertex 3, wanted 0 to 2"),
    (shape(TRIANGLE.replace("0 1 2", "0 1 -2")), "face 0: got vertex -2"),
    (shape(TRIANGLE.replace("0 1 2", "0 1 9e300")), "face 0: got vertex"),
    (shape(TRIANGLE.replace("0 1 2", "0 1 1.5")), "coordIndex: got 1.5, wanted integers"),
    (shape(TRIANGLE.replace("7 8 10", "7 8")), "point: got 8 numbers, wanted three a point"),
    (shape(TRIANGLE.replace("7 8", "x 8")), "line 2: point wants numbers"),
    (shape(TRIANGLE.replace("7 8", "nan 8")), "line 2: point wants finite numbers"),
    (shape(TRIANGLE.replace("7 8", "7-8")), "line 2: point wants numbers"),
    (shape("IndexedFaceSet { coordIndex [0 1 2] }"), "face 0: got vertex 0"),
    (shape("IndexedFaceSet { coord USE C coordIndex [0 1 2] }"), "USE C: there is no DEF before it"),
    ("DEF A Group { children USE A }", "USE A: there is no DEF before it"),
    (f"Transform {{ scale 1e308 1e308 1e308 children {shape()} }}", "its Transforms make coordinates infinite"),
    (f"Transform {{ scale 1 inf 1 children {shape()} }}", "scale wants finite numbers"),
    (f"Transform {{ scale 1 2 children {shape()} }}", "scale wants numbers"),
    (shape("Sphere { radius 1 }") + shape(), "Sphere: got a surface of kind 'Sphere', wanted IndexedFaceSets only"),
    (f'Inline {{ url "x.wrl" }} {shape()}', "Inline: got another file"),
    (f"PROTO P [] {{ {shape()} }} P {{ }} {shape()}", "P: got a surface of kind 'P'"),
    (f'EXTERNPROTO P [] "x.wrl" P {{ }} {shape()}', "P: got a surface of kind 'P'"),
    ("Group { }", "got no face, wanted an IndexedFaceSet with polygons"),
    (shape(TRIANGLE.replace("0 1 2", "0 1")), "got no face"),
    (shape()[:-2], "the file ends inside of Shape"),
    (shape() + "}", "got }, wanted the end of the file"),
    (shape(TRIANGLE[:50]), "point does not end"),
    (f'{shape()} WorldInfo {{ title "a \\" b }}', "a string does not end"),
    ("PROTO P [ field SFNode n {", "a bracket [ does not end"),
    ("PROTO P {", "PROTO without its interface"),
    ("DEF { }", "got '{', wanted a name behind DEF"),
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("body", "what"), BAD, ids=[what[:40] for _, what in BAD])
def test_broken_files_are_refused_with_the_place(body: str, what: str) -> None:
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        read_vrml("a.wrl", wrl(body))
    assert caught.value.file == "a.wrl"


@pytest.mark.parametrize(
    ("data", "got"),
    [(b"#VRML V1.0 ascii\n", "got VRML 1.0"), (b"\x1f\x8b\x08", "got a gzip file"), (b"solid x", "got b'solid x'")],
)
def test_other_versions_are_named(data: bytes, got: str) -> None:
    with pytest.raises(DataError, match=re.escape(got)):
        read_vrml("a.wrl", data)


def doubled(levels: int, inner: str) -> str:
    groups = "".join(f"DEF G{i} Group {{ children [ USE G{i - 1} USE G{i - 1} ] }}\n" for i in range(1, levels))
    return f"DEF G0 Group {{ children [ {inner} ] }}\n{groups}"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (doubled(60, shape()), "nodes, each USE counted"),
        (doubled(60, ""), "nodes, each USE counted"),
        ("Group { children [ " * 300, "256 levels"),
        ("Group { children [ " * 200_000, "256 levels"),
        ("Group {} " * 40_000, "30,000 nodes"),
        ("USE A " * 40_000, "30,000 nodes"),
        ("PROTO P [] { " * 100_000, "a bracket { does not end"),
        ("[ 1 2 3 " * 200_000, "got no face"),
        ('WorldInfo { title "' + '\\"' * 500_000, "a string does not end"),
        ('"a" ' * 300_000, "got no face"),
        ("#\n" * 500_000, "got no face"),
        ("," * 1_000_000, "got no face"),
    ],
)
@pytest.mark.timeout(60)  # what is not linear takes hours
def test_bombs_are_refused_soon(body: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrml_nodes, "MAX_NODES", 30_000)
    monkeypatch.setattr(vrml, "MAX_USES", 30_000)
    with pytest.raises(DataError, match=re.escape(what)):
        read_vrml("a.wrl", wrl(body))


def test_copies_count_against_the_bound_of_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vrml, "MAX_FACES", 1000)
    with pytest.raises(DataError, match="got more than 10,000,000 vertices and 1,000 triangles, each USE counted"):
        points_of(doubled(12, shape()))
    monkeypatch.setattr(vrml_nodes, "MAX_NODES", 3)
    with pytest.raises(DataError, match="got more than 3 nodes"):
        points_of(shape() * 2)


@pytest.mark.timeout(60)
def test_large_files_are_read() -> None:
    numbers = " ".join(f"{i / 8} {-i} 1e-2," for i in range(100_000))
    indices = " ".join(f"{i},{i + 1},{i + 2},-1," for i in range(99_998))
    body = shape(f"IndexedFaceSet {{ coord Coordinate {{ point [{numbers}] }} coordIndex [{indices}] }}")
    mesh = read_vrml("a.wrl", wrl(body))
    assert mesh.points.shape == (100_000, 3) and mesh.points[-1].tolist() == [99_999 / 8, -99_999, 0.01]
    assert mesh.faces is not None and mesh.faces.shape == (99_998, 3)


def test_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.wrl").write_bytes(wrl())
    with pytest.raises(DataError, match="Inline"):
        read_vrml("x.wrl", wrl('Inline { url [ "x.wrl" ] }'))
