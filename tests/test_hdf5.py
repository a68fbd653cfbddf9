"""The gate opens honest files and refuses every other one with a DataError, before memory is taken."""

import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import jointmae
from jointmae.data import hdf5
from jointmae.data.hdf5 import MAX_CHUNK_BYTES, open_hdf5
from jointmae.errors import DataError

POINTS = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
Writer = Callable[[h5py.File, Path], None]


def write(folder: Path, writer: Writer) -> Path:
    path = folder / "set.h5"
    with h5py.File(path, "w") as file:
        writer(file, folder)
    return path


def open_and_read_all(path: Path) -> None:
    with open_hdf5(path) as file:
        for name in file.names:
            file.strings(name) if file.dtype(name).kind in "OS" else file.read(name)


OPTIONS: list[dict[str, object]] = [
    {},
    {"chunks": (1, 5, 3)},
    {"chunks": (2, 4, 3), "compression": "gzip", "shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i2", "u1", "?"])
def test_honest_datasets_are_read_unchanged(tmp_path: Path, options: dict[str, object], dtype: str) -> None:
    values = POINTS.astype(dtype)
    path = write(tmp_path, lambda file, _: file.create_dataset("train/points", data=values, **options))
    with open_hdf5(path) as file:
        assert file.names == ("train/points",) and "train/points" in file and "points" not in file
        assert file.shape("train/points") == (2, 5, 3) and file.dtype("train/points") == values.dtype
        np.testing.assert_array_equal(file.read("train/points"), values)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (2,)}, {"chunks": (2,), "shuffle": True}])
@pytest.mark.parametrize("dtype", ["utf-8", "ascii", "S9"])
def test_strings_of_both_kinds_are_read(tmp_path: Path, options: dict[str, object], dtype: str) -> None:
    texts = ["chair", "", "Ständer €" if dtype == "utf-8" else "table 2"]
    stored_as = dtype if dtype == "S9" else h5py.string_dtype(dtype)
    path = write(tmp_path, lambda file, _: file.create_dataset("name", data=texts, dtype=stored_as, **options))
    with open_hdf5(path) as file:
        assert file.strings("name") == tuple(texts)


def test_root_attributes_are_read(tmp_path: Path) -> None:
    def writer(file: h5py.File, _: Path) -> None:
        file.attrs["up_axis"], file.attrs["classes"], file.attrs["version"] = "+z", ["a", "b"], 3

    with open_hdf5(write(tmp_path, writer)) as file:
        assert file.attributes["up_axis"] == "+z" and file.attributes["version"] == 3
        assert list(file.attributes["classes"]) == ["a", "b"] and file.names == ()


def test_a_chunk_stored_without_its_filter_is_read(tmp_path: Path) -> None:
    def writer(file: h5py.File, _: Path) -> None:
        points = file.create_dataset("points", shape=(2, 5, 3), dtype="<f4", chunks=(2, 5, 3), compression="gzip")
        points.id.write_direct_chunk((0, 0, 0), POINTS.tobytes(), filter_mask=1)

    with open_hdf5(write(tmp_path, writer)) as file:
        np.testing.assert_array_equal(file.read("points"), POINTS)


def soft_link(file: h5py.File, _: Path) -> None:
    file["here"] = POINTS
    file["points"] = h5py.SoftLink("/here")


def dangling_soft_link(file: h5py.File, _: Path) -> None:
    file["train/points"] = h5py.SoftLink("/nowhere")


def external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["points"] = POINTS
    file["points"] = h5py.ExternalLink(str(folder / "other.h5"), "/points")


def soft_link_to_a_group(file: h5py.File, _: Path) -> None:
    file["real/points"] = POINTS
    file["train"] = h5py.SoftLink("/real")


def external_link_to_a_group(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["train/points"] = POINTS
    file["train"] = h5py.ExternalLink(str(folder / "other.h5"), "/train")


def cycle(file: h5py.File, _: Path) -> None:
    file.create_group("train/deeper")
    file["train/deeper/again"] = file["train"]


def cycle_through_the_root(file: h5py.File, _: Path) -> None:
    file.create_group("train")["root"] = file["/"]


def alias(file: h5py.File, _: Path) -> None:
    file["points"] = POINTS
    file["same"] = file["points"]


def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "raw.bin").write_bytes(POINTS.tobytes())
    file.create_dataset("points", shape=POINTS.shape, dtype="f4", external=[(str(folder / "raw.bin"), 0, 120)])


def virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["points"] = POINTS
    layout = h5py.VirtualLayout(POINTS.shape, "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "points", POINTS.shape)
    file.create_virtual_dataset("points", layout)


def foreign_filter(file: h5py.File, _: Path) -> None:
    file.create_dataset("points", data=np.arange(30), chunks=(30,), scaleoffset=True)


def compressed_twice(file: h5py.File, _: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((30,))
    plist.set_deflate(9)
    plist.set_deflate(9)
    h5py.h5d.create(file.id, b"points", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((30,)), plist)


def named_type(file: h5py.File, _: Path) -> None:
    file["points"] = np.dtype("f4")


def compound(file: h5py.File, _: Path) -> None:
    file["points"] = np.zeros(3, dtype=[("x", "f4"), ("y", "f4")])


def references(file: h5py.File, _: Path) -> None:
    file.create_dataset("points", data=[file.ref], dtype=h5py.ref_dtype)


def ragged(file: h5py.File, _: Path) -> None:
    file.create_dataset("points", shape=(3,), dtype=h5py.vlen_dtype("f4"))


def null(file: h5py.File, _: Path) -> None:
    file["points"] = h5py.Empty("f4")


def complex_numbers(file: h5py.File, _: Path) -> None:
    file["points"] = np.zeros(3, dtype="c8")


def reference_attribute(file: h5py.File, _: Path) -> None:
    file["points"] = POINTS
    file.attrs["classes"] = file.ref


def shape_bomb(file: h5py.File, _: Path) -> None:
    file.create_dataset("points", shape=(10**9, 2048, 3), dtype="f4")


def chunked_shape_bomb(file: h5py.File, _: Path) -> None:
    file.create_dataset("points", shape=(10**9, 2048, 3), dtype="f4", chunks=(1, 2048, 3))[0] = 1


def compressed_shape_bomb(file: h5py.File, _: Path) -> None:
    points = file.create_dataset("points", (10**9, 2048, 3), "f4", chunks=(1, 2048, 3), compression="gzip")
    points[0] = 1


def huge_chunk(file: h5py.File, _: Path) -> None:
    side = MAX_CHUNK_BYTES // 4 + 1
    points = file.create_dataset("points", (side,), "f4", chunks=(side,), compression="gzip")
    points.id.write_direct_chunk((0,), np.random.default_rng(0).bytes(2**20))


def inflate_bomb(file: h5py.File, _: Path) -> None:
    points = file.create_dataset("points", (20_000,), "u1", chunks=(20_000,), compression="gzip")
    points.id.write_direct_chunk((0,), zlib.compress(bytes(16_000_000), 9))


def large_inflate_bomb(file: h5py.File, _: Path) -> None:
    points = file.create_dataset("points", (1000,), "u1", chunks=(1000,), compression="gzip")
    points.id.write_direct_chunk((0,), zlib.compress(bytes(16_000_000), 9))


def chunk_too_short(file: h5py.File, _: Path) -> None:
    points = file.create_dataset("points", (1000,), "u1", chunks=(1000,), compression="gzip")
    points.id.write_direct_chunk((0,), zlib.compress(bytes(999)))


def chunk_of_garbage(file: h5py.File, _: Path) -> None:
    points = file.create_dataset("points", (1000,), "u1", chunks=(1000,), compression="gzip")
    points.id.write_direct_chunk((0,), b"not a zlib stream")


def latin_1(file: h5py.File, _: Path) -> None:
    file.create_dataset("name", data=np.array([b"St\xe4nder"]))


def names_in_two_dimensions(file: h5py.File, _: Path) -> None:
    file.create_dataset("name", data=np.array([[b"a", b"b"]]))


REFUSED: list[tuple[Writer, str, str]] = [
    (soft_link, "points", "is a soft link, and links are not followed"),
    (dangling_soft_link, "train/points", "is a soft link"),
    (external_link, "points", "is an external link"),
    (soft_link_to_a_group, "train", "is a soft link, and links are not followed"),
    (external_link_to_a_group, "train", "is an external link"),
    (cycle, "train/deeper/again", "is a second link to an object"),
    (cycle_through_the_root, "train/root", "is a second link to an object"),
    (alias, "same", "is a second link to an object"),
    (external_storage, "points", "is stored in another file"),
    (virtual, "points", "is a virtual dataset"),
    (foreign_filter, "points", "got HDF5 filter 6, wanted one of shuffle, fletcher32, gzip, lzf"),
    (compressed_twice, "points", "is compressed more than once"),
    (named_type, "points", "is neither a group nor a dataset"),
    (compound, "points", "wanted numbers or strings"),
    (references, "points", "got values of type reference"),
    (ragged, "points", "got values of type variable-length array"),
    (null, "points", "got values of type null"),
    (complex_numbers, "points", "got values of type complex64"),
    (reference_attribute, "attribute classes", "wanted numbers or strings"),
    (shape_bomb, "points", "needs 24,576,000,000,000 bytes, but 0 are stored"),
    (chunked_shape_bomb, "points", "needs 24,576,000,000,000 bytes, but 24,576 are stored"),
    (compressed_shape_bomb, "points", "needs 24,576,000,000,000 bytes, but"),
    (huge_chunk, "points", "got chunks of 268,435,460 bytes, wanted at most 268,435,456"),
    (inflate_bomb, "points", "chunk 0 does not inflate to 20,000 bytes"),
    (large_inflate_bomb, "points", "chunk 0 stores 15,"),
    (chunk_too_short, "points", "chunk 0 does not inflate to 1,000 bytes"),
    (chunk_of_garbage, "points", "cannot be read: the file is damaged"),
    (latin_1, "name", "cannot be read: the file is damaged"),
    (names_in_two_dimensions, "name", "wanted strings in one dimension"),
]


@pytest.mark.parametrize(("writer", "item", "what"), REFUSED, ids=[case[0].__name__ for case in REFUSED])
def test_files_that_lie_or_lead_elsewhere_are_refused(tmp_path: Path, writer: Writer, item: str, what: str) -> None:
    path = write(tmp_path, writer)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        open_and_read_all(path)
    assert caught.value.file == str(path) and caught.value.item == item and caught.value.exit_code == 3


READ_HOSTILE = """
import os, resource, sys
from pathlib import Path
from jointmae.data import load
from jointmae.errors import DataError

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).glob("*/set.h5")):
    opened.clear()
    try:
        load(path)
        sys.exit(f"{path} was read")
    except DataError as error:
        assert error.file == str(path), error
    others = [name for name in opened if name.startswith(sys.argv[1]) and name != str(path)]
    assert not others, others
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_refused_files_open_no_other_and_take_little_memory(tmp_path: Path) -> None:
    """Python's own opens are seen by a hook; what HDF5 itself would open is a pipe, at which it would wait for ever."""
    for writer, _, _ in REFUSED:
        (folder := tmp_path / writer.__name__).mkdir()
        write(folder, writer)
        for other in (folder / "other.h5", folder / "raw.bin"):
            if other.exists():
                other.unlink()
                os.mkfifo(other)
    command = [sys.executable, "-c", READ_HOSTILE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    largest = max(path.stat().st_size for path in tmp_path.glob("*/set.h5"))
    assert int(run.stdout) <= 256 * 2**20 + 2 * largest


def test_a_limit_on_the_whole_file_holds(tmp_path: Path) -> None:
    path = write(tmp_path, lambda file, _: file.create_dataset("points", data=POINTS))
    with open_hdf5(path, max_bytes=POINTS.nbytes) as file:
        assert file.names == ("points",)
    with (
        pytest.raises(DataError, match="holds 120 bytes of data, wanted at most 119"),
        open_hdf5(path, max_bytes=POINTS.nbytes - 1),
    ):
        pass


def test_numbers_are_not_read_as_strings_nor_strings_as_numbers(tmp_path: Path) -> None:
    def writer(file: h5py.File, _: Path) -> None:
        file["points"], file["name"] = POINTS, ["a"]

    with open_hdf5(write(tmp_path, writer)) as file:
        with pytest.raises(DataError, match="name: got values of type string, wanted numbers"):
            file.read("name")
        with pytest.raises(DataError, match=r"points: got float32 \(2, 5, 3\), wanted strings"):
            file.strings("points")


@pytest.mark.parametrize("size", [0, 1, 8, 100, 1000, -100, -1])
def test_truncated_files_are_refused(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, lambda file, _: file.create_dataset("points", data=POINTS, compression="gzip"))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="cannot be opened as HDF5: it is damaged, truncated or of another format"):
        open_and_read_all(path)


def test_missing_files_folders_and_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("points\n" * 1000)
    for name, what in (("none.h5", "does not exist"), ("", "is not a regular file"), ("text.h5", "cannot be opened")):
        with pytest.raises(DataError, match=what):
            open_and_read_all(tmp_path / name)


def test_damage_anywhere_ends_in_a_data_error_or_in_data(tmp_path: Path) -> None:
    """300 files with bytes overwritten at random: nothing but DataError comes out."""

    def writer(file: h5py.File, _: Path) -> None:
        file.create_dataset("train/points", data=POINTS, compression="gzip", shuffle=True)
        file["train/label"], file["train/name"], file.attrs["up_axis"] = [0, 1], ["a", "b"], "+z"

    path = write(tmp_path, writer)
    original, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(original)
        for _ in range(8):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            open_and_read_all(path)
        except DataError:
            refused += 1
    assert 30 < refused < 300


def test_a_string_heap_on_which_hdf5_hangs_is_refused(tmp_path: Path) -> None:
    """A size too large by 192 leads from the last string into zeros: a free object of size 0, walked for ever."""
    path = write(tmp_path, lambda file, _: file.attrs.__setitem__("classes", ["a", "b"]))
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    assert data[heap + 48] == 1  # header of 16, an object of 24, 8 bytes into the next: its size
    data[heap + 48] = 192
    path.write_bytes(data)
    with pytest.raises(DataError, match="its strings are damaged"):
        open_and_read_all(path)


def test_many_strings_that_are_one_large_object_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "MAX_STRING_BYTES", 100_000)
    path = write(tmp_path, lambda file, _: file.create_dataset("name", data=["x" * 10_000] + ["y"] * 19))
    with h5py.File(path) as file:
        offset = file["name"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset : offset + 20 * 16] = data[offset : offset + 16] * 20
    path.write_bytes(data)
    with pytest.raises(DataError, match="name: its strings take 200,000 bytes, wanted at most 100,000"):
        open_and_read_all(path)


def test_attributes_that_may_take_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "MAX_STRING_BYTES", 100_000)
    path = write(tmp_path, lambda file, _: file.attrs.__setitem__("classes", ["x" * 10_000] * 20))
    with pytest.raises(DataError, match="attribute classes: takes 200,000 bytes, wanted at most 100,000"):
        open_and_read_all(path)


@pytest.mark.parametrize("length", [2**32 - 1, 1, 6, 2**31])
@pytest.mark.parametrize("options", [{}, {"chunks": (3,), "shuffle": True}, {"compression": "gzip"}, None])
def test_a_string_of_another_length_than_its_object_is_refused(
    tmp_path: Path, options: dict[str, object] | None, length: int
) -> None:
    """HDF5 clears as many bytes as a reference says, 4 GiB in 13 s, or writes past the end of them."""
    texts = ["chair", "table", "bed"]

    def writer(file: h5py.File, _: Path) -> None:
        if options is None:
            file.attrs["name"] = texts
        else:
            file.create_dataset("name", data=texts, **options)

    path = write(tmp_path, writer)
    data = path.read_bytes()
    heap = data.index(b"GCOL").to_bytes(8, "little")
    old, new = struct.pack("<I8sI", 5, heap, 2), struct.pack("<I8sI", length, heap, 2)
    if options is not None and "compression" in options:
        with h5py.File(path, "r+") as file:
            _, stored = file["name"].id.read_direct_chunk((0,))
            references = zlib.decompress(stored)
            assert references.count(old) == 1
            file["name"].id.write_direct_chunk((0,), zlib.compress(references.replace(old, new)))
    else:
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match="name: its strings are damaged"):
        open_and_read_all(path)


def test_strings_in_forms_that_only_hands_make_are_refused(tmp_path: Path) -> None:
    """In the header of an object they have no place that HDF5 tells, and its lzf has no bound."""

    def compact(plist: h5py.h5p.PropDCID) -> None:
        plist.set_layout(h5py.h5d.COMPACT)

    def lzf(plist: h5py.h5p.PropDCID) -> None:
        plist.set_chunk((2,))
        plist.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)

    for change in (compact, lzf):
        with h5py.File(tmp_path / "set.h5", "w") as file:
            change(plist := h5py.h5p.create(h5py.h5p.DATASET_CREATE))
            dtype = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
            h5py.Dataset(h5py.h5d.create(file.id, b"name", dtype, h5py.h5s.create_simple((2,)), plist))[...] = "a"
        with pytest.raises(DataError, match="name: its strings are stored in an unusual way"):
            open_and_read_all(tmp_path / "set.h5")


def test_files_of_very_many_chunks_are_read_in_a_moment(tmp_path: Path) -> None:
    """20,000 of them: looked for one by one they took 20 s."""
    values = np.arange(20_000, dtype=np.float32)[:, None]
    path = write(tmp_path, lambda file, _: file.create_dataset("points", data=values, chunks=(1, 1), compression="lzf"))
    begin = time.perf_counter()
    with open_hdf5(path) as file:
        np.testing.assert_array_equal(file.read("points"), values)
    assert time.perf_counter() - begin < 10


def test_heaps_are_not_looked_for_in_large_datasets_but_between_them(tmp_path: Path) -> None:
    lookalike = np.frombuffer(b"GCOL\x01\0\0\0" + (4096).to_bytes(8, "little") + bytes(16), "<f4")

    def writer(file: h5py.File, _: Path) -> None:
        for options in ({}, {"chunks": (2**16,)}):
            file.create_dataset(f"a{len(options)}", data=np.tile(lookalike, 2**16), **options)
            file[f"b{len(options)}"] = [f"name {i}" for i in range(1000)]
        file.attrs["classes"] = ["a", "b"]

    with open_hdf5(write(tmp_path, writer)) as file:
        assert file.strings("b0") == file.strings("b1") == tuple(f"name {i}" for i in range(1000))
        assert list(file.attributes["classes"]) == ["a", "b"]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("count", [3, 40])
def test_attributes_are_found_however_they_are_stored(tmp_path: Path, libver: str, count: int) -> None:
    """In the header or, from nine on, in a heap; the file may begin with a block of the user's."""
    with h5py.File(tmp_path / "set.h5", "w", libver=libver, userblock_size=512) as file:
        for i in range(count):
            file.attrs[f"key {i} {'é' * i}"] = f"value {i}" if i % 2 else ["a" * i, ""]
        file["points"] = POINTS
    with open_hdf5(tmp_path / "set.h5") as opened:
        for i in range(count):
            value = opened.attributes[f"key {i} {'é' * i}"]
            assert value == f"value {i}" if i % 2 else list(value) == ["a" * i, ""]


def test_nothing_but_the_gate_opens_hdf5() -> None:
    package = Path(jointmae.__file__).parent
    users = {str(path.relative_to(package)) for path in package.rglob("*.py") if "import h5py" in path.read_text()}
    assert users == {"data/hdf5.py", "data/hdf5_writer.py"}
    writer = (package / "data" / "hdf5_writer.py").read_text()
    assert writer.count("h5f.create(") == writer.count("h5py.File(") == 1 and "h5f.open" not in writer  # it reads none
    gate = (package / "data" / "hdf5.py").read_text()
    assert gate.count("h5py.File(") == 1
