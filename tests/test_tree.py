"""Folders and archives as lists of shapes with their classes and splits; what leads out of them is refused."""

from __future__ import annotations

import io
import os
import random
import re
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from jointmae.data import archive, tree
from jointmae.data.archive import Archive
from jointmae.data.tree import find_shapes, natural_key
from jointmae.errors import DataError


def make(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def pack(path: Path, names: Iterable[str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return path


def found(path: Path) -> list[tuple[str, str, str]]:
    return [(entry.name, entry.split, entry.label) for entry in find_shapes(path).entries]


LAYOUTS: list[list[tuple[str, str, str]]] = [
    [("a.off", "", ""), ("b.off", "", "")],
    [("chair/1.off", "", "chair"), ("table/1.off", "", "table")],
    [("chair/1.off", "", "chair"), ("chair/deep/er/2.off", "", "chair"), ("z.off", "", "")],
    [("chair/1.off", "", "chair")],  # the only class, no folder round it
    [("test/chair/1.off", "test", "chair"), ("train/chair/1.off", "train", "chair")],
    [("chair/test/2.off", "test", "chair"), ("chair/train/1.off", "train", "chair")],
    [("extra/1.off", "extra", ""), ("val/1.off", "val", "")],
    [("train/1.off", "train", "")],
    [("M10/chair/test/2.off", "test", "chair"), ("M10/table/train/1.off", "train", "table")],
    [("M10/test/chair/2.off", "test", "chair"), ("M10/train/table/1.off", "train", "table")],
    [("a/b/chair/1.off", "", "chair"), ("a/b/table/1.off", "", "table")],
    [("all/chair/train/1.off", "train", "chair")],
    [("c2/1.off", "", "c2"), ("c2/2.off", "", "c2"), ("c2/10.off", "", "c2"), ("c10/1.off", "", "c10")],
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("expected", LAYOUTS)
def test_folders_name_classes_and_splits(tmp_path: Path, expected: list[tuple[str, str, str]], packed: bool) -> None:
    names = [name for name, *_ in expected]
    random.Random(0).shuffle(names)
    path = pack(tmp_path / "set.zip", names) if packed else make(tmp_path / "set", names)
    assert found(path) == expected
    entry = find_shapes(path).entries[0]
    place = (path, entry.name) if packed else (path / entry.name, "")
    assert (entry.path, entry.member) == place and entry.size == 1


def test_classes_and_splits_have_one_order(tmp_path: Path) -> None:
    names = [f"{split}/{label}/1.off" for split in ("test", "train") for label in ("b10", "B", "b9", "é", "b09")]
    shapes = find_shapes(make(tmp_path, names))
    assert shapes.classes == ("B", "b09", "b9", "b10", "é") and shapes.splits() == ("train", "test")


def test_the_natural_order_is_total_and_takes_any_number_of_digits() -> None:
    names = ["", "0", "00", "1", "01", "a", "a1", "a1b", "a01b", "a2", "a10", "a-1", "A", "²", "٣", "9" * 5000]
    assert len({repr(natural_key(name)) for name in names}) == len(names)
    once = sorted(names, key=natural_key)
    assert once == sorted(reversed(names), key=natural_key)
    assert [name for name in once if name in ("a1", "a2", "a10")] == ["a1", "a2", "a10"]


def test_other_files_are_counted_and_hidden_ones_are_not_there(tmp_path: Path) -> None:
    make(tmp_path, ["c/a.OBJ", "c/a.mtl", "c/b.mtl", "c/t.png", "README", ".git/a.off", "c/.b.off", "__MACOSX/c.off"])
    shapes = find_shapes(tmp_path)
    assert [entry.name for entry in shapes.entries] == ["c/a.OBJ"]
    assert shapes.describe_passed_over() == "4 files of other kinds were passed over: .mtl, (no suffix), .png"


def test_text_beside_meshes_is_no_cloud(tmp_path: Path) -> None:
    make(tmp_path, ["a/LICENSE.txt", "a/b.off", "list.csv"])
    assert [entry.name for entry in find_shapes(tmp_path).entries] == ["a/b.off"]
    assert find_shapes(tmp_path).passed_over == ((".csv", 1), (".txt", 1))
    (tmp_path / "a/b.off").unlink()
    assert [entry.name for entry in find_shapes(tmp_path).entries] == ["a/LICENSE.txt", "list.csv"]
    assert find_shapes(tmp_path).describe_passed_over() == ""


def test_a_single_file_is_a_set_of_one(tmp_path: Path) -> None:
    path = make(tmp_path, ["a.off"]) / "a.off"
    assert found(path) == [("a.off", "", "")] and find_shapes(path).entries[0].path == path


def test_deep_folders_are_walked_and_names_have_a_bound(tmp_path: Path) -> None:
    folder = tmp_path / "/".join("a" * 500)
    os.makedirs(folder)
    make(folder, ["b.off"])
    assert found(tmp_path)[0][2] == "a"
    make(folder / "a" / "a" / ("a" * 20), ["b.off"])
    with pytest.raises(DataError, match="a name of 1,030 bytes, wanted at most 1,024: rename it"):
        find_shapes(tmp_path)


# Links and strange files


def test_links_inside_are_files_and_links_outside_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "set", ["a/1.off"])
    (root / "b").mkdir()
    (root / "b/2.off").symlink_to("../a/1.off")
    assert [name for name, *_ in found(root)] == ["a/1.off", "b/2.off"]
    (tmp_path / "set2").symlink_to(root)  # the one who gives it means it
    assert len(found(tmp_path / "set2")) == 2
    make(tmp_path, ["secret.off"])
    (root / "b/3.off").symlink_to(tmp_path / "secret.off")
    with pytest.raises(DataError, match="b/3.off: is a link that leads out of the folder, to .*: copy what"):
        find_shapes(root)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("a", "is a link to a folder, which is not followed: copy the folder"),
        ("..", "is a link that leads out of the folder"),
        ("gone.off", r"cannot be read \(No such file or directory\): remove it or repair its link"),
        ("link.off", "link.off: (is a link that leads nowhere|cannot be read)"),
    ],
)
def test_links_that_are_no_file_are_refused(tmp_path: Path, target: str, what: str) -> None:
    root = make(tmp_path / "set", ["a/1.off"])
    (root / "link.off").symlink_to(target)
    with pytest.raises(DataError, match=what):
        find_shapes(root)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(make(tmp_path, ["a.off"]) / "pipe")
    assert len(found(tmp_path)) == 1  # nobody asks for it
    os.mkfifo(tmp_path / "b.off")
    with pytest.raises(DataError, match="b.off: is not a regular file: remove it"):
        find_shapes(tmp_path)


def test_names_are_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.off", "wb"):
        pass
    with pytest.raises(DataError, match="its name is not UTF-8: rename it"):
        find_shapes(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gone", "does not exist: give the path of a folder or a .zip archive"),
        ("empty", "got no shape among 0 files, wanted one of .csv .glb"),
        ("other", "got no shape among 1 file,"),
        (
            "mixed",
            "got shapes inside of a split (train/a.off) and outside of any (b.off): move",
        ),
        ("a.rar", "got .rar, wanted a folder, one of .zip .sh3f or of .csv"),
        ("b.zip", "cannot be read as a zip archive (File is not a zip file): the archive is damaged"),
    ],
)
def test_paths_that_hold_no_shapes_are_named(tmp_path: Path, name: str, what: str) -> None:
    make(tmp_path, ["other/a.mtl", "mixed/train/a.off", "mixed/b.off", "a.rar", "b.zip"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        find_shapes(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 5)
    with pytest.raises(DataError, match="holds more than 5 files and folders: split it"):
        find_shapes(make(tmp_path, [f"{i}.png" for i in range(6)]))


# Archives


def info(name: str, **fields: object) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def patched(path: Path, signature: bytes, offset: int, value: bytes) -> Path:
    """`value` in the last header of a kind."""
    data = bytearray(path.read_bytes())
    place = data.rindex(signature) + offset
    data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


CENTRAL = b"PK\x01\x02"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../a.off", "its name leads out of the archive: pack it again"),
        ("a/../../b.off", "its name leads out of the archive"),
        ("/etc/a.off", "its name leads out of the archive"),
        ("C:/a.off", "its name leads out of the archive"),
        ("a\\..\\..\\b.mtl", "its name leads out of the archive"),  # though nobody asks for it
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        find_shapes(pack(tmp_path / "a.zip", ["ok.off", name]))
    assert caught.value.file == str(tmp_path / "a.zip")


def test_members_that_come_twice_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = pack(tmp_path / "a.zip", ["a.off", "b.off", "a.off"])
    with pytest.raises(DataError, match="a.off: is in the archive twice"):
        find_shapes(path)


def test_links_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info("a.off", external_attr=(stat.S_IFLNK | 0o777) << 16), "/etc/passwd")
    with pytest.raises(DataError, match="a.off: is a symbolic link, and links are not followed"):
        find_shapes(tmp_path / "a.zip")
    with pytest.raises(DataError, match="b.off: is encrypted: pack it again .*, without a password"):
        find_shapes(patched(pack(tmp_path / "b.zip", ["b.off"]), CENTRAL, 8, b"\x01\x00"))


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_other_compressions_are_refused(tmp_path: Path, method: int, number: int) -> None:
    """One byte of bzip2 can be a million."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("a.off", bytes(1000))
    with pytest.raises(DataError, match=f"got compression method {number}, wanted deflate"):
        find_shapes(tmp_path / "a.zip")


def deflated(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.off", data)
    return path


def test_sizes_that_the_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = deflated(tmp_path / "a.zip", b"x" * 1000)
    with pytest.raises(DataError, match="a.off: claims 2,000,000,000 bytes, wanted at most .* stored"):
        find_shapes(patched(path, CENTRAL, 24, struct.pack("<I", 2_000_000_000)))
    with pytest.raises(DataError, match="its members claim 1,000,000 stored bytes, the file has"):
        find_shapes(patched(path, CENTRAL, 20, struct.pack("<II", 1_000_000, 1000)))


def test_a_member_that_is_more_than_it_says_is_not_inflated(tmp_path: Path) -> None:
    """100 MB of zeros that claim to be 100,000 bytes: the checksum of those tells, and no more was in memory."""
    path = deflated(tmp_path / "a.zip", bytes(100_000_000))
    patched(path, CENTRAL, 24, struct.pack("<I", 100_000))
    with Archive(path) as opened, pytest.raises(DataError, match="a.off: cannot be read as a zip archive .Bad CRC-32"):
        opened.read("a.off")


def test_a_member_that_is_less_than_it_says_is_refused(tmp_path: Path) -> None:
    path = patched(deflated(tmp_path / "a.zip", b"x" * 100), CENTRAL, 24, struct.pack("<I", 200))
    with Archive(path) as opened, pytest.raises(DataError, match="got 100 bytes, wanted 200 as its list says"):
        opened.read("a.off")


def test_members_are_read_whole_within_a_bound(tmp_path: Path) -> None:
    with Archive(deflated(tmp_path / "a.zip", b"abc" * 100)) as opened:
        assert opened.read("a.off") == b"abc" * 100
        with pytest.raises(DataError, match="a.off: got 300 bytes, wanted at most 10: split it"):
            opened.read("a.off", max_bytes=10)
        with pytest.raises(DataError, match="b.off: is not in the archive"):
            opened.read("b.off")


def test_a_list_of_members_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", [f"{i:050}.off" for i in range(2000)])
    assert len(find_shapes(path).entries) == 2000
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 100_000)
    with pytest.raises(DataError, match="its list of members has more than 100,000 bytes"):
        find_shapes(path)


@pytest.mark.filterwarnings("error")
def test_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f"c/{i}.off", b"OFF 3 1 0 " * 20)
    data, path, generator, refused = stream.getvalue(), tmp_path / "a.zip", random.Random(0), 0
    for _ in range(500):
        damaged = bytearray(data)
        if generator.random() < 0.2:
            del damaged[generator.randrange(len(damaged)) :]
        for _ in range(generator.choice((1, 2, 5))):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            with Archive(path) as opened:
                for member in opened.members:
                    assert opened.read(member) == b"OFF 3 1 0 " * 20
        except DataError:
            refused += 1
    assert 200 < refused <= 500
