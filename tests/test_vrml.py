"""VRML 2.0: triangles where their transforms put them; nothing that is linked is opened."""

import numpy as np
import pytest

from jointmae.data.shapes import read_shape
from jointmae.errors import DataError

HEADER = "#VRML V2.0 utf8\n"
FACE = """
Shape { # a comment with } in it
  appearance Appearance { material Material { diffuseColor 1 0 0 } }
  geometry IndexedFaceSet {
    coord DEF C Coordinate { point [ 0 0 0, 1 0 0, 1 1 0, 0 1 0 ] }
    coordIndex [ 0, 1, 2, 3, -1 ]
  }
}
"""


def read(text: str):
    return read_shape("shape.wrl", (HEADER + text).encode())


def test_a_quad_is_two_triangles() -> None:
    shape = read(FACE)
    np.testing.assert_array_equal(shape.points, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    assert shape.faces is not None and shape.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_transforms_are_applied_from_the_inside_out() -> None:
    inner = f"Transform {{ scale 2 2 2 rotation 0 0 1 1.5707963267948966 children [ {FACE} ] }}"
    shape = read(f"Transform {{ translation 10 0 0 children [ Group {{ children [ {inner} ] }} ] }}")
    np.testing.assert_allclose(shape.points, [[10, 0, 0], [10, 2, 0], [8, 2, 0], [8, 0, 0]], atol=1e-12)


def test_a_node_that_is_used_again_is_there_twice() -> None:
    shape = read(f"DEF A Group {{ children [ {FACE} ] }} Transform {{ translation 0 0 5 children [ USE A ] }}")
    assert len(shape.points) == 8 and shape.faces is not None and len(shape.faces) == 4
    np.testing.assert_array_equal(shape.points[4:], shape.points[:4] + [0, 0, 5])


BOMB = (
    "DEF G0 Group { children [ "
    + FACE
    + " ] }\n"
    + "".join(f"DEF G{i + 1} Group {{ children [ {f'USE G{i} ' * 20} ] }}\n" for i in range(8))
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (FACE.replace("2, 3, -1", "2, 9, -1"), "got vertex 9, wanted 0 to 3"),
        (FACE.replace("0, 1, 2", "-5, 1, 2"), "got vertex -5, wanted 0 to 3"),
        (FACE[:-4], "the file ends inside of IndexedFaceSet"),
        ("Group { children [ ] }", "got no face"),
        ('Inline { url "file:///etc/passwd" }', "Inline"),
        ("Shape { geometry Box { size 1 1 1 } }", "Box"),
        ("Group { children [ USE Nothing ] }", "Nothing"),
        ("Group { children [ " * 100_000 + "] }" * 100_000, "got more than 300,000 nodes, 256 levels"),
        (BOMB, "got more than 300,000 nodes, each USE counted"),
        (FACE.replace("1 1 0", "1 x 0"), "point wants numbers"),
    ],
    ids=["index", "negative", "cut", "empty", "inline", "box", "use", "deep", "bomb", "word"],
)
def test_what_cannot_be_read_is_refused(text: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read(text)
    assert caught.value.file == "shape.wrl"


def test_version_1_is_refused() -> None:
    with pytest.raises(DataError, match="VRML"):
        read_shape("shape.wrl", b"#VRML V1.0 ascii\nSeparator { }")
