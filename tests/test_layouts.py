"""Each official layout is read back exactly, is recognised by names alone, and no list leads out of its folder."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointmae.data import official
from jointmae.data.layouts import lists, many
from jointmae.data.layouts.layout import BadFile, Block, Layout
from jointmae.data.layouts.modelnet_hdf5 import ModelNetHdf5
from jointmae.data.layouts.modelnet_resampled import ModelNetResampled
from jointmae.data.layouts.scanobjectnn import ScanObjectNN
from jointmae.data.layouts.shapenet55 import ShapeNet55
from jointmae.data.layouts.shapenet_part import PART_NAMES, PARTS, ShapeNetPart
from jointmae.errors import DataError
from tests import official_sets
from tests.official_sets import random_clouds, write_h5, write_lines

LAYOUTS: list[type[Layout]] = [ModelNetHdf5, ModelNetResampled, ScanObjectNN, ShapeNet55, ShapeNetPart]
SETS: dict[str, tuple[Callable[[Path], Path], type[Layout], str]] = {
    "modelnet_hdf5": (official_sets.modelnet_hdf5, ModelNetHdf5, ""),
    "modelnet40": (official_sets.modelnet_resampled, ModelNetResampled, "modelnet40"),
    "obj_bg": (official_sets.scanobjectnn, ScanObjectNN, "obj_bg"),
    "shapenet55": (official_sets.shapenet55, ShapeNet55, "shapenet55"),
    "txt": (official_sets.shapenet_part_txt, ShapeNetPart, "txt"),
    "hdf5": (official_sets.shapenet_part_hdf5, ShapeNetPart, "hdf5"),
}


def read(layout: Layout, split: str, skip_bad: bool = False) -> list[Block]:
    blocks = list(layout.blocks(split, skip_bad))
    assert all(isinstance(block, Block) for block in blocks)
    return [block for block in blocks if isinstance(block, Block)]


def clouds(layout: Layout, split: str) -> tuple[list[Any], list[int], list[str]]:
    """Points, labels and names of all clouds."""
    points: list[Any] = []
    labels: list[int] = []
    names: list[str] = []
    for block in read(layout, split):
        assert len(block) == len(block.labels) == len(block.names) and block.sizes.sum() == len(block.points)
        assert block.points.dtype == np.float32 and block.sizes.dtype == block.labels.dtype == np.int64
        points += np.split(block.points, np.cumsum(block.sizes)[:-1])
        labels += block.labels.tolist()
        names += block.names
    assert layout.num_clouds(split) == len(points)
    return points, labels, names


def moved(points: Any, decimals: int | None = None) -> Any:
    """Clouds that were float64, or text of so many decimals, as a block has them."""
    points = np.asarray(points, np.float64)
    points = points if decimals is None else np.round(points, decimals)
    return (points - points[..., :1, :]).astype(np.float32)


# Read back


def test_modelnet_hdf5_is_read_back_in_the_order_of_its_list(tmp_path: Path) -> None:
    layout = ModelNetHdf5(official_sets.modelnet_hdf5(tmp_path))
    assert layout.splits == ("train", "test") and layout.up_axis == "+y" and len(layout.classes) == 40
    points, labels, names = clouds(layout, "train")
    np.testing.assert_array_equal(points, np.concatenate([random_clouds(5, 16, seed) for seed in (1, 0)]))
    assert labels == [10, 11, 12, 13, 14, 0, 1, 2, 3, 4] and names[5] == "ply_data_train0.h5/0"
    assert layout.classes[10] == "cup" and clouds(layout, "test")[1] == [20, 21, 22, 23, 24]


@pytest.mark.parametrize(("variant", "train"), [("modelnet40", [0, 0, 2, 2, 23, 23]), ("modelnet10", [1, 1, 6, 6])])
def test_modelnet_resampled_is_read_back(tmp_path: Path, variant: str, train: list[int]) -> None:
    layout = ModelNetResampled(official_sets.modelnet_resampled(tmp_path), variant)
    points, labels, names = clouds(layout, "train")
    assert labels == train and names[-1] == "night_stand/night_stand_0002.txt"
    np.testing.assert_array_equal(points[-2:], moved(random_clouds(3, 12, seed=2)[:2], 6))
    assert layout.num_clouds("test") == len(train) // 2


def test_modelnet_resampled_takes_the_older_name_of_its_list_of_classes(tmp_path: Path) -> None:
    root = official_sets.modelnet_resampled(tmp_path)
    (root / "modelnet40_shape_names.txt").rename(root / "shape_names.txt")
    assert ModelNetResampled(root, "modelnet40").classes == tuple(official_sets.MODELNET40)


@pytest.mark.parametrize(("variant", "seed", "last"), [("obj_bg", 0, 14), ("pb_t50_rs", 2, 13), ("obj_only", 4, 12)])
def test_scanobjectnn_is_read_back(tmp_path: Path, variant: str, seed: int, last: int) -> None:
    layout = ScanObjectNN(official_sets.scanobjectnn(tmp_path), variant)
    assert layout.classes[:3] == ("bag", "bin", "box") and layout.classes[14] == "toilet" and layout.up_axis == "+y"
    for i, split in enumerate(("train", "test")):
        points, labels, _ = clouds(layout, split)
        np.testing.assert_array_equal(points, random_clouds(4, 16, seed + i))
        assert labels == [last - 3, last - 2, last - 1, last]


def test_shapenet55_is_read_back(tmp_path: Path) -> None:
    root = official_sets.shapenet55(tmp_path)
    layout = ShapeNet55(root, "shapenet55")
    assert len(layout.classes) == 55 and layout.classes[:2] == ("airplane", "trash bin")
    points, labels, names = clouds(layout, "train")
    np.testing.assert_array_equal(points, random_clouds(6, 20)[2::-1])
    assert labels == [2, 1, 0] and names[2] == f"shapenet_pc/02691156-{0:032x}.npy"
    unseen = ShapeNet55(root, "unseen21")
    assert unseen.splits == ("test",) and unseen.classes == layout.classes
    points, labels, _ = clouds(unseen, "test")  # a file of float64, as PoinTr's script writes them
    np.testing.assert_array_equal(points[0], moved(random_clouds(6, 20)[5]))
    assert labels == [5]


def test_shapenet_part_text_is_read_back(tmp_path: Path) -> None:
    layout = ShapeNetPart(official_sets.shapenet_part_txt(tmp_path), "txt")
    assert layout.splits == ("train", "val", "test") and len(layout.classes) == 16 and len(layout.part_names) == 50
    points, labels, names = clouds(layout, "val")
    np.testing.assert_array_equal(points[1], moved(random_clouds(1, 12, seed=11)[0], 6))
    assert labels == [15, 0, 2] and names[1] == f"02691156/1{0:031x}.txt"
    (block,) = read(layout, "val")
    assert block.parts is not None and block.parts.reshape(3, 12)[:, :2].tolist() == [[47, 48], [0, 1], [6, 7]]


def test_shapenet_part_hdf5_is_read_back(tmp_path: Path) -> None:
    layout = ShapeNetPart(official_sets.shapenet_part_hdf5(tmp_path), "hdf5")
    points, labels, _ = clouds(layout, "val")
    np.testing.assert_array_equal(points, random_clouds(3, 16, seed=21))
    (block,) = read(layout, "val")
    assert labels == [5, 6, 7] and block.parts is not None
    assert block.parts.reshape(3, 16)[:, :2].tolist() == [[16, 17], [19, 20], [22, 23]]


def test_parts_are_numbered_through_all_classes() -> None:
    assert list(PARTS["Airplane"]) == [0, 1, 2, 3] and list(PARTS["Motorbike"]) == [30, 31, 32, 33, 34, 35]
    assert [parts.start for parts in PARTS.values()] == official_sets.PART_STARTS
    assert len(PART_NAMES) == 50 and PART_NAMES[47:] == ("Table/0", "Table/1", "Table/2")


def test_a_name_twice_in_a_list_of_shapenet_part_is_one_cloud(tmp_path: Path) -> None:
    path = official_sets.shapenet_part_txt(tmp_path) / "train_test_split/shuffled_train_file_list.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    assert len(clouds(ShapeNetPart(path.parent.parent, "txt"), "train")[0]) == 3


@given(S=st.integers(1, 700), N=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_blocks_hold_all_clouds_once_and_are_small(tmp_path_factory: pytest.TempPathFactory, S: int, N: int) -> None:
    path = tmp_path_factory.mktemp("hdf5") / "set.h5"
    write_h5(path, data=random_clouds(S, N), label=np.arange(S) % 7)
    blocks = list(many.hdf5_blocks(path.parent, [path], 7))
    sizes = [len(block) for block in blocks if isinstance(block, Block)]
    assert sum(sizes) == S and max(sizes) <= 256 and len(sizes) == len(blocks) == -(-S // 256)
    points = np.concatenate([block.points for block in blocks if isinstance(block, Block)])
    np.testing.assert_array_equal(points.reshape(S, N, 3), random_clouds(S, N))


def test_blocks_of_large_clouds_are_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "MAX_POINTS", 40)
    path = tmp_path / "set.h5"
    write_h5(path, data=random_clouds(5, 16), label=np.zeros(5, int))
    assert [len(block) for block in many.hdf5_blocks(tmp_path, [path], 1) if isinstance(block, Block)] == [2, 2, 1]
    layout = ShapeNet55(official_sets.shapenet55(tmp_path), "shapenet55")  # 20 points a cloud
    assert [len(block) for block in read(layout, "train")] == [2, 1]


# Recognised by names


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_one_layout_also_from_the_folder_above(tmp_path: Path, name: str) -> None:
    writer, kind, variant = SETS[name]
    root = writer(tmp_path)
    for path in (root, tmp_path):
        assert variant in kind.variants(path)
        assert [layout for layout in LAYOUTS if layout.variants(path)] == [kind]
        assert kind(path, variant).files() == kind(root, variant).files()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("folder", "variants"),
    [
        ("", ("obj_bg", "obj_only", "pb_t50_rs")),
        ("main_split", ("obj_bg", "pb_t50_rs")),
        ("main_split_nobg", ("obj_only",)),
    ],
)
def test_scanobjectnn_is_found_from_each_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, variants: tuple[str, ...]
) -> None:
    root = official_sets.scanobjectnn(tmp_path) / folder
    assert ScanObjectNN.variants(root) == variants
    monkeypatch.chdir(root)
    assert ScanObjectNN.variants(Path(".")) == variants


def test_variants_are_those_that_are_there(tmp_path: Path) -> None:
    assert ShapeNet55.variants(official_sets.shapenet55(tmp_path)) == ("shapenet55", "shapenet34", "unseen21")
    root = official_sets.modelnet_resampled(tmp_path)
    assert ModelNetResampled.variants(root) == ("modelnet40", "modelnet10")
    (root / "modelnet10_shape_names.txt").unlink()
    assert ModelNetResampled.variants(root) == ("modelnet40",)
    official_sets.shapenet_part_txt(tmp_path)
    official_sets.shapenet_part_hdf5(tmp_path)
    assert ShapeNetPart.variants(tmp_path) == ("txt", "hdf5")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", ["", "nowhere", "a\0b", "x" * 5000, "file", "file/below", "loop", "closed"])
def test_other_paths_have_no_variants_and_raise_nothing(tmp_path: Path, layout: type[Layout], path: str) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "closed").mkdir(mode=0)
    assert layout.variants(tmp_path / path) == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_set_is_told_what_is_wanted(tmp_path: Path, layout: type[Layout]) -> None:
    with pytest.raises(DataError, match=re.escape(layout.tree)) as caught:
        layout(tmp_path, "")  # type: ignore[call-arg]
    assert caught.value.file == str(tmp_path)


# Wrong lists

LINES: dict[str, tuple[str, str, str]] = {  # list, a line of it, the file of that line
    "modelnet_hdf5": ("test_files.txt", "data/modelnet40_ply_hdf5_2048/{}", "ply_data_test0.h5"),
    "modelnet40": ("modelnet40_test.txt", "{}", "airplane_0003"),
    "shapenet55": ("ShapeNet-55/test.txt", "{}", f"{official_sets.SYNSETS55[3]}-{3:032x}.npy"),
    "hdf5": ("val_hdf5_file_list.txt", "{}", "ply_data_val0.h5"),
    "txt": ("train_test_split/shuffled_val_file_list.json", "shape_data/02691156/{}", f"1{0:031x}"),
}
HOSTILE = ["../{}", "/etc/{}", "a/../../{}", "./{}", "a//{}", "C:{}", "C:/{}", "..\\{}", "\\\\host\\share\\{}", "{}\0"]


def with_list(name: str, folder: Path, lines: list[str]) -> tuple[Path, Callable[[], Layout]]:
    """The list of a set, with other lines, and what reads it."""
    writer, kind, variant = SETS[name]
    root = writer(folder)
    path = rewrite(root / LINES[name][0], lines)
    return path, lambda: kind(root, variant)  # type: ignore[call-arg]


def rewrite(path: Path, lines: list[str]) -> Path:
    path.write_text(json.dumps(lines)) if path.suffix == ".json" else write_lines(path, lines)
    return path


@pytest.mark.parametrize("name", LINES)
def test_lines_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    _, line, file = LINES[name]
    path, build = with_list(name, tmp_path, ["/"])
    for hostile in HOSTILE:
        for wrong in (hostile.format(line.format(file)), line.format(hostile.format(file))):
            if not wrong.endswith(f"/etc/{file}") or wrong.startswith("/"):
                rewrite(path, [wrong])
                with pytest.raises(DataError, match="line 1: got .*, wanted a path below") as caught:
                    build()
                assert caught.value.file == str(path)


@pytest.mark.parametrize("name", ["modelnet_hdf5", "modelnet40", "shapenet55", "hdf5"])
def test_a_line_twice_is_refused(tmp_path: Path, name: str) -> None:
    _, line, file = LINES[name]
    _, build = with_list(name, tmp_path, [line.format(file)] * 2)
    with pytest.raises(DataError, match="line 2: .* is also line 1: remove one of them"):
        build()


@pytest.mark.parametrize("name", ["modelnet40", "shapenet55", "txt"])
@pytest.mark.parametrize("line", ["cat_0001", "99999999-1.npy", "shape_data/99999999/1", "", "x", "airplane0001"])
def test_a_line_of_an_unknown_class_is_refused(tmp_path: Path, name: str, line: str) -> None:
    _, build = with_list(name, tmp_path, [line])
    with pytest.raises(DataError, match="line 1: got .*, wanted|is empty"):
        build()


@pytest.mark.parametrize("name", ["modelnet_hdf5", "hdf5"])
def test_a_missing_hdf5_file_is_named(tmp_path: Path, name: str) -> None:
    _, build = with_list(name, tmp_path, ["ply_data_train9.h5"])
    with pytest.raises(DataError, match=re.escape("line 1: ") + ".*ply_data_train9.h5 does not exist"):
        build()


@pytest.mark.parametrize("name", ["modelnet40", "shapenet55", "txt"])
def test_a_missing_file_is_named_or_left_out(tmp_path: Path, name: str) -> None:
    _, line, file = LINES[name]
    wanted = line.format(file)
    gone = wanted[:-1] + "9" if name != "shapenet55" else wanted.replace(".npy", "9.npy")
    _, build = with_list(name, tmp_path, [gone, wanted])
    split = "val" if name == "txt" else "test"
    layout = build()
    assert layout.num_clouds(split) == 2
    with pytest.raises(DataError) as caught:
        list(layout.blocks(split))
    bad, block = layout.blocks(split, skip_bad=True)
    assert isinstance(bad, BadFile) and isinstance(block, Block) and len(block) == 1
    assert caught.value.file.endswith(bad.name) and caught.value.what == bad.what and file[:-5] in bad.name


@pytest.mark.parametrize("name", SETS)
def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    writer, kind, variant = SETS[name]
    root = writer(tmp_path)
    layout = kind(root, variant)  # type: ignore[call-arg]
    file = layout.files()[-1]
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    split = layout.splits[-1]
    with pytest.raises(DataError, match="is a link that leads out of") as caught:
        list(layout.blocks(split))
    assert caught.value.file == str(file)
    bad = [found for found in layout.blocks(split, skip_bad=True) if isinstance(found, BadFile)]
    assert [found.name for found in bad] == [os.path.relpath(file, caught.value.what.split("out of ")[1].split(":")[0])]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty: copy it again"),
        (b"\n \n", "is empty: copy it again"),
        (b"ply\xff.h5\n", "byte 3: is not UTF-8: copy the list again"),
        (b"x" * 101, "has more than 100 bytes: is it a list of files?"),
    ],
)
def test_lists_that_are_no_lists_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, what: str
) -> None:
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 100)
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"list.txt: {what}")):
        lists.read_lines(tmp_path / "list.txt")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"[1]", b'["a", null]', b"[", b"[" * 100_000, b"NaN", b'"a"'])
def test_json_lists_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.json").write_bytes(content)
    with pytest.raises(DataError, match=re.escape("list.json: ") + "(is not JSON|wanted a JSON list)"):
        lists.read_json_lines(tmp_path / "list.json")


@given(line=st.text("./\\:aC é\0", max_size=12))
@settings(max_examples=300, deadline=None)
def test_no_line_that_passes_leads_out_of_the_folder(line: str) -> None:
    try:
        lists.expect_below(Path("list"), 0, line)
    except DataError:
        return
    assert os.path.normpath(os.path.join("/set", line)).startswith("/set/")


def test_a_list_with_windows_line_ends_is_read(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    path = root / "train_files.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(clouds(ModelNetHdf5(root), "train")[0]) == 10


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["Airplane\t02691156", "Dog\t02773838"], "line 2: got 'Dog\\t02773838', wanted"),
        (["Airplane\t02773838"], "line 1: got"),
        (["Airplane"], "line 1: got"),
    ],
)
def test_classes_that_are_not_shapenet_parts_are_refused(tmp_path: Path, lines: list[str], what: str) -> None:
    root = official_sets.shapenet_part_txt(tmp_path)
    write_lines(root / "synsetoffset2category.txt", lines)
    with pytest.raises(DataError, match=re.escape(what)):
        ShapeNetPart(root, "txt")


def test_the_order_of_the_classes_matters_where_labels_are_numbers(tmp_path: Path) -> None:
    root = official_sets.shapenet_part_hdf5(tmp_path)
    path = root / "all_object_categories.txt"
    lines = path.read_text().splitlines()
    for wrong in ([lines[1], lines[0], *lines[2:]], lines[:-1], [*lines, lines[0]]):
        write_lines(path, wrong)
        with pytest.raises(DataError, match="all_object_categories.txt: .*got .*, wanted"):
            ShapeNetPart(root, "hdf5")


def test_pickled_forms_are_not_read(tmp_path: Path) -> None:
    root = official_sets.modelnet_resampled(tmp_path)
    for name in ("airplane", "bed", "night_stand"):
        (root / name).rename(tmp_path / name)
    (root / "modelnet40_train_8192pts_fps.dat").write_bytes(b"pickle")
    with pytest.raises(DataError, match=re.escape("pickled .dat files are never read: get the text files")):
        ModelNetResampled(root, "modelnet40")


# Wrong files

GOOD = {"data": random_clouds(3, 5), "label": np.zeros((3, 1), np.uint8), "pid": np.zeros((3, 5), np.uint8)}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"data": None}, "got label, pid, wanted a dataset data [S, N, 3]"),
    ({"data": random_clouds(3, 5)[..., :2]}, "data: got float32 [3, 5, 2], wanted"),
    ({"data": random_clouds(3, 5).astype(int)}, "data: got int64 [3, 5, 3], wanted"),
    ({"data": random_clouds(1, 5)[0]}, "data: got float32 [5, 3], wanted"),
    ({"label": None}, "label: is missing, wanted integers [3]"),
    ({"label": np.zeros((2, 1), int)}, "label: got int64 [2, 1], wanted integers [3, 1], as `data` has"),
    ({"label": np.zeros(4, int)}, "label: got int64 [4], wanted integers [3], as `data` has"),
    ({"label": np.zeros((3, 2), int)}, "label: got int64 [3, 2], wanted integers [3, 1]"),
    ({"label": np.zeros(3)}, "label: got float64 [3], wanted integers [3]"),
    ({"label": np.array([0, 16, 0])}, "label: got 16 at [1], wanted 0..15"),
    ({"label": np.array([0, 0, -1])}, "label: got -1 at [2], wanted 0..15"),
    ({"pid": None}, "pid: is missing, wanted integers [3, 5]"),
    ({"pid": np.zeros((3, 4), int)}, "pid: got int64 [3, 4], wanted integers [3, 5], as `data` has"),
    ({"pid": np.full((3, 5), 50)}, "pid: got 50 at [0, 0], wanted 0..49"),
]


@pytest.mark.parametrize(("datasets", "what"), BAD, ids=[case[1][:40] for case in BAD])
def test_wrong_hdf5_files_are_named_or_left_out(tmp_path: Path, datasets: dict[str, Any], what: str) -> None:
    path = official_sets.shapenet_part_hdf5(tmp_path) / "ply_data_val0.h5"
    write_h5(path, **{name: values for name, values in (GOOD | datasets).items() if values is not None})
    layout = ShapeNetPart(tmp_path, "hdf5")
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        list(layout.blocks("val"))
    assert caught.value.file == str(path)
    (bad,) = layout.blocks("val", skip_bad=True)
    assert isinstance(bad, BadFile) and bad.name == "ply_data_val0.h5" and bad.what.startswith(what)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("1 2 3 0 0 1\n" * 3, "got 6 columns, wanted 7, x y z nx ny nz part"),
        ("1 2 3 0 0 1 0 9\n" * 3, "got 8 columns, wanted 7"),
        ("1 2 3 0 0 1 0\n1 2 3 0 0 1 50\n", "row 1: got part 50, wanted 0..49"),
        ("1 2 3 0 0 1 0.5\n", "row 0: got part 0.5, wanted 0..49"),
        ("1 2 3 0 0 1 nan\n", "row 0: got part nan, wanted 0..49"),
        ("1 2 3 0 0 1 0\n1 2\n", "wanted rows of 7 numbers, x y z nx ny nz part ("),
        ("one two three 0 0 1 0\n", "wanted rows of 7 numbers"),
        ("\0\xff\n", "wanted rows of 7 numbers"),
        (" \n", "is empty: copy it again"),
    ],
)
def test_wrong_texts_are_named_or_left_out(tmp_path: Path, content: str, what: str) -> None:
    root = official_sets.shapenet_part_txt(tmp_path)
    layout = ShapeNetPart(root, "txt")
    path = layout.files()[-1]
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        list(layout.blocks("test"))
    assert caught.value.file == str(path)
    found = list(layout.blocks("test", skip_bad=True))
    assert [len(block) for block in found if isinstance(block, Block)] == [2]
    assert [bad.what.startswith(what) for bad in found if isinstance(bad, BadFile)] == [True]


def test_a_wrong_cloud_of_a_list_is_named_or_left_out(tmp_path: Path) -> None:
    layout = ShapeNet55(official_sets.shapenet55(tmp_path), "shapenet55")
    path = layout.files()[3]
    np.save(path, np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        list(layout.blocks("train"))
    assert caught.value.file == str(path)
    bad, block = layout.blocks("train", skip_bad=True)
    assert isinstance(bad, BadFile) and bad.name == path.relative_to(layout.path).as_posix()
    assert isinstance(block, Block) and block.labels.tolist() == [2, 0]


def test_nan_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    data = random_clouds(2, 4)
    data[1, 3] = np.nan
    write_h5(path, data=data, label=np.zeros(2, int))
    (block,) = many.hdf5_blocks(tmp_path, [path], 1)
    assert isinstance(block, Block) and np.isnan(block.points).sum() == 3


# The official numbers


@pytest.mark.parametrize(("layout", "variant"), [(ShapeNet55, v) for v in ("shapenet55", "shapenet34", "unseen21")])
def test_official_sets_are_found(layout: type[Layout], variant: str) -> None:
    numbers = official.find(layout.kind, variant)
    assert numbers is not None and numbers.num_points == 8192 and len(numbers.classes) == 55
    assert official.find(layout.kind, "no such variant") is None and official.find("no such kind", variant) is None


@pytest.mark.parametrize("name", ["modelnet_hdf5", "modelnet_resampled", "scanobjectnn", "shapenet55", "shapenet_part"])
def test_official_numbers_agree_with_each_other(name: str) -> None:
    table = official.table(name)
    assert table["kind"] in {layout.kind for layout in LAYOUTS}
    for variant in table["variants"]:
        numbers = official.find(table["kind"], variant)
        assert numbers is not None and numbers.origin and numbers.get and numbers.terms and numbers.source
        assert len(set(numbers.classes)) == len(numbers.classes) and numbers.up_axis == "+y"
        for split, counts in numbers.counts_per_class.items():
            assert len(counts) == len(numbers.classes) and sum(counts) == numbers.counts[split]
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in numbers.lists.values())


def test_unseen_classes_are_those_that_shapenet34_has_not() -> None:
    seen, unseen = (official.find("ShapeNet55", variant) for variant in ("shapenet34", "unseen21"))
    assert seen is not None and unseen is not None
    pairs = list(zip(seen.counts_per_class["test"], unseen.counts_per_class["test"], strict=True))
    assert all((a > 0) != (b > 0) for a, b in pairs) and sum(b > 0 for _, b in pairs) == 21
