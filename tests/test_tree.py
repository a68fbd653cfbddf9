"""Folders and archives of shapes: classes and splits by their paths; nothing leads out, nothing is extracted."""

import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from jointmae.data.archive import Archive
from jointmae.data.tree import find_shapes
from jointmae.errors import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1 2 3\n")
    return root


def places(root: Path) -> list[tuple[str, str, str]]:
    return [(entry.name, entry.split, entry.label) for entry in find_shapes(root).entries]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["chair/2.xyz", "chair/10.xyz", "bed/1.xyz"], [("", "bed"), ("", "chair"), ("", "chair")]),
        (["train/chair/1.xyz", "test/chair/1.xyz"], [("test", "chair"), ("train", "chair")]),
        (["chair/train/1.xyz", "chair/test/2.xyz"], [("test", "chair"), ("train", "chair")]),
        (["1.xyz", "2.xyz"], [("", ""), ("", "")]),
        (["train/1.xyz", "val/2.xyz"], [("train", ""), ("val", "")]),
        (["wrap/train/a/1.xyz", "wrap/test/a/1.xyz"], [("test", "a"), ("train", "a")]),
    ],
)
def test_folders_name_classes_and_splits(tmp_path: Path, names: list[str], expected: list[tuple[str, str]]) -> None:
    found = places(make(tmp_path, *names))
    assert [(split, label) for _, split, label in found] == expected


def test_names_are_in_natural_order_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a/c10.xyz", "a/c9.xyz", "a/.c1.xyz", "__MACOSX/a/c1.xyz", "a/readme.md", "a/note.txt")
    tree = find_shapes(tmp_path)
    assert [entry.name for entry in tree.entries] == ["a/c9.xyz", "a/c10.xyz"]
    assert tree.describe_passed_over() == "2 files of other kinds were passed over: .md, .txt"


def test_shapes_inside_and_outside_of_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got shapes inside of a split"):
        find_shapes(make(tmp_path, "train/a/1.xyz", "b/1.xyz"))


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    secret = make(tmp_path / "elsewhere", "secret.xyz") / "secret.xyz"
    root = make(tmp_path / "set", "a/1.xyz")
    (root / "a" / "2.xyz").symlink_to(root / "a" / "1.xyz")
    assert len(find_shapes(root).entries) == 2  # a link to a neighbour is as good as the file
    (root / "a" / "3.xyz").symlink_to(secret)
    with pytest.raises(DataError, match=r"a/3.xyz: is a link that leads out of the folder"):
        find_shapes(root)


@pytest.mark.parametrize("what", ["nowhere", "empty", "photo.png"])
def test_places_without_shapes_are_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").touch()
    with pytest.raises(DataError, match="does not exist|got no shape|got .png, wanted") as caught:
        find_shapes(tmp_path / what)
    assert caught.value.file == str(tmp_path / what)


# Archives


def zipped(path: Path, *names: str, data: bytes = b"1 2 3\n" * 50) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, data)
    return path


def test_an_archive_is_read_in_memory(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", "a/1.xyz", "b/2.xyz")
    assert places(path) == [("a/1.xyz", "", "a"), ("b/2.xyz", "", "b")]
    with Archive(path) as archive:
        assert archive.read("a/1.xyz") == b"1 2 3\n" * 50
        with pytest.raises(DataError, match="wanted at most 10"):
            archive.read("a/1.xyz", max_bytes=10)
    assert [file.name for file in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize("name", ["../out.xyz", "/abs.xyz", "a/../../out.xyz", "C:/out.xyz", "..\\out.xyz"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out of the archive"):
        find_shapes(zipped(tmp_path / "set.zip", name))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "set.zip", "a.xyz", "a.xyz")
    with pytest.raises(DataError, match="twice"):
        find_shapes(path)


def test_a_link_as_a_member_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        info = zipfile.ZipInfo("a.xyz")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a symbolic link"):
        find_shapes(tmp_path / "set.zip")


def edited(path: Path, offset: int, value: bytes) -> Path:
    """The one entry of the list of members, changed `offset` bytes from its signature."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (8, b"\x01\x00", "is encrypted"),
        (10, struct.pack("<H", zipfile.ZIP_LZMA), "got compression method 14, wanted deflate"),
        (24, struct.pack("<I", 2**31 - 1), "claims 2,147,483,647 bytes"),
        (20, struct.pack("<I", 2**30), "its members claim|claim"),
    ],
)
def test_lists_that_lie_are_refused(tmp_path: Path, offset: int, value: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        find_shapes(edited(zipped(tmp_path / "set.zip", "a.xyz"), offset, value))


def test_a_member_larger_or_other_than_its_list_says_is_refused(tmp_path: Path) -> None:
    path = edited(zipped(tmp_path / "set.zip", "a.xyz"), 24, struct.pack("<I", 10))
    with pytest.raises(DataError), Archive(path) as archive:
        archive.read("a.xyz")
    other = edited(zipped(tmp_path / "set.zip", "a.xyz"), 16, struct.pack("<I", zlib.crc32(b"other")))
    with pytest.raises(DataError), Archive(other) as archive:
        archive.read("a.xyz")


@pytest.mark.parametrize("size", [0, 10, 60, 100])
def test_cut_archives_are_refused(tmp_path: Path, size: int) -> None:
    path = zipped(tmp_path / "set.zip", "a.xyz")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="zip archive|damaged"):
        find_shapes(path)
