"""Any layout becomes clouds of one size: ragged ones resampled, bad points refused or dropped, decoded sets kept."""

import os
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jointmae.data import cache, load, normalize_unit_sphere, splits_of
from jointmae.data.gather import NUM_POINTS, gather
from jointmae.data.layouts import LAYOUTS, find
from jointmae.data.layouts.layout import BadFile, Block, Layout, Names
from jointmae.errors import DataError

TRIANGLE = "OFF\n3 1 0\n0 0 0\n2 0 0\n0 2 0\n3 0 1 2\n"


class InMemory(Layout):
    """Blocks as they are given."""

    kind, tree = "in memory", ""
    classes, part_names, up_axis, source, licence = ("a",), ("p", "q"), "+y", "", ""
    splits: Names = ("train",)

    def __init__(self, path: Path, variant: str = "", blocks: tuple[Block | BadFile, ...] = ()) -> None:
        self.path, self.variant, self._blocks = path, variant, blocks

    @classmethod
    def variants(cls, path: Path) -> Names:
        return ("",)

    def files(self) -> list[Path]:
        return []

    def num_clouds(self, split: str) -> int:
        return sum(len(block) for block in self._blocks if isinstance(block, Block))

    def blocks(self, split: str, skip_bad: bool = False):
        yield from self._blocks


def block(*clouds: np.ndarray, with_parts: bool = False, item: str = "points") -> Block:
    sizes = np.array([len(cloud) for cloud in clouds])
    points = np.concatenate(clouds).astype(np.float32)
    parts = np.arange(len(points)).astype(np.uint8) % 2 if with_parts else None
    names = tuple(f"cloud{i}" for i in range(len(clouds)))
    return Block(points, sizes, np.zeros(len(sizes), dtype=np.int64), names, parts, Path("set"), item)


def cloud(num_points: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_points, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; a cloud of 70 points, one of 90, and a mesh."""
    for name in ("chair", "table"):
        (tmp_path / "set" / name).mkdir(parents=True)
    np.save(tmp_path / "set" / "chair" / "c10.npy", cloud(70))
    np.savetxt(tmp_path / "set" / "chair" / "c9.xyz", cloud(90, 1))
    (tmp_path / "set" / "table" / "t.off").write_text(TRIANGLE)
    return tmp_path / "set"


# Folders, archives, single files


def test_a_folder_of_shapes_is_a_set(folder: Path) -> None:
    clouds = load(folder)
    assert clouds.layout == "folder of shapes" and clouds.title == "set" and splits_of(folder) == ("train",)
    assert clouds.names == ("chair/c9.xyz", "chair/c10.npy", "table/t.off") and clouds.labels.tolist() == [0, 0, 1]
    assert clouds.classes == ("chair", "table") and clouds.points.shape == (3, NUM_POINTS, 3)
    assert torch.equal(load(folder).points, clouds.points)  # the mesh is sampled to the same points
    expected = normalize_unit_sphere(torch.from_numpy(cloud(70)))
    rows = {tuple(row) for row in expected.tolist()}
    assert {tuple(row) for row in clouds.points[1].tolist()} == rows


def test_an_archive_is_as_good_as_its_folder(folder: Path) -> None:
    archive = folder.parent / "set.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, str(path.relative_to(folder)))
    assert torch.equal(load(archive).points, load(folder).points) and load(archive).sha256 == load(folder).sha256
    assert {path.name for path in folder.parent.iterdir()} == {"set", "set.zip"}  # nothing was extracted


def test_a_single_file_is_a_set_of_one(folder: Path) -> None:
    clouds = load(folder / "chair" / "c10.npy")
    assert clouds.points.shape == (1, 70, 3) and clouds.classes == () and clouds.names == ("c10.npy",)


def test_a_bad_file_is_named_or_left_out(folder: Path) -> None:
    (folder / "chair" / "c9.xyz").write_text("1 2\n")
    with pytest.raises(DataError, match=re.escape(str(folder / "chair" / "c9.xyz"))):
        load(folder)
    clouds = load(folder, skip_bad=True)
    assert len(clouds) == 2 and len(clouds.bad_files) == 1 and clouds.bad_files[0].startswith("chair/c9.xyz: ")
    assert "1 bad file" in clouds.describe()


def test_a_set_of_bad_files_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"not one cloud can be read: 1 bad file, the first a.npy: "):
        load(tmp_path, skip_bad=True)


def test_a_variant_where_there_is_none_and_a_colon_in_a_path(folder: Path) -> None:
    with pytest.raises(DataError, match=re.escape("folder of shapes has no variants, got 'x': leave out \":x\"")):
        find(f"{folder}:x")
    other = folder.rename(folder.parent / "set:x")
    assert find(other).path == other


def test_the_documentation_shows_every_tree() -> None:
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    for layout in LAYOUTS:
        assert layout.tree in text, layout.kind


# One size


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(sizes=sizes, with_parts=st.booleans())
def test_ragged_clouds_keep_rows_of_their_own(sizes: list[int], with_parts: bool) -> None:
    clouds = [cloud(size, i) for i, size in enumerate(sizes)]
    given_block = block(*clouds, with_parts=with_parts)
    arrays = gather(InMemory(Path("set"), blocks=(given_block,)), "train")
    N = max(sizes)
    assert arrays.points.shape == (len(sizes), N, 3)
    starts = np.cumsum([0, *sizes])
    for i, size in enumerate(sizes):
        whole = normalize_unit_sphere(torch.from_numpy(clouds[i])).numpy()
        rows = {tuple(row): j for j, row in enumerate(whole)}
        chosen = [rows[tuple(row)] for row in arrays.points[i]]  # KeyError: a row of no cloud, or of another one
        assert set(chosen) == set(range(size))  # none is lost
        if with_parts:
            assert arrays.parts is not None and given_block.parts is not None
            assert arrays.parts[i].tolist() == [given_block.parts[starts[i] + j] for j in chosen]


def test_larger_clouds_give_a_subset_without_repeats() -> None:
    clouds = [cloud(NUM_POINTS + 100), cloud(NUM_POINTS + 200, 1)]
    arrays = gather(InMemory(Path("set"), blocks=(block(*clouds),)), "train")
    assert arrays.points.shape == (2, NUM_POINTS, 3)
    assert all(len(np.unique(points, axis=0)) == NUM_POINTS for points in arrays.points)
    again = gather(InMemory(Path("set"), blocks=(block(clouds[0]), block(clouds[1]))), "train")
    np.testing.assert_array_equal(arrays.points, again.points)  # however it comes in blocks


def test_clouds_of_one_size_keep_their_order() -> None:
    arrays = gather(InMemory(Path("set"), blocks=(block(cloud(5), cloud(5, 1)),)), "train")
    expected = normalize_unit_sphere(torch.from_numpy(np.stack([cloud(5), cloud(5, 1)])))
    np.testing.assert_array_equal(arrays.points, expected.numpy())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.floats(-38, 37), st.integers(0, 2**31))
def test_normalised_clouds_are_centred_in_the_unit_sphere(N: int, exponent: float, seed: int) -> None:
    points = torch.from_numpy(cloud(N, seed).astype(np.float64) * 10.0**exponent).float()
    normal = normalize_unit_sphere(points)
    assert torch.isfinite(normal).all()
    assert float(normal.norm(dim=-1).max()) <= 1 + 1e-5 and normal.mean(0).abs().max() < 1e-5
    again = normalize_unit_sphere(normal)
    torch.testing.assert_close(again, normal, rtol=0, atol=1e-5)


# Bad points and strange clouds


def test_a_bad_point_is_named_or_dropped() -> None:
    bad = cloud(6, 1)
    bad[2, 1] = np.nan
    layout = InMemory(Path("set"), blocks=(block(cloud(4)), block(cloud(5), bad)))
    with pytest.raises(DataError, match=r"set: points: cloud 2 \('cloud1'\), row 2 is \[.*nan.*\], wanted finite"):
        gather(layout, "train")
    arrays = gather(layout, "train", bad_points="drop")
    assert arrays.num_dropped == 1 and arrays.points.shape == (3, 5, 3) and np.isfinite(arrays.points).all()


def test_a_cloud_of_bad_points_alone_is_an_error_either_way() -> None:
    layout = InMemory(Path("set"), blocks=(block(cloud(4), np.full((3, 3), np.inf), item=""),))
    for bad_points, what in (("error", "row 0 is"), ("drop", "has no finite point: remove the cloud")):
        with pytest.raises(DataError, match=what) as caught:
            gather(layout, "train", bad_points=bad_points)
        assert caught.value.file == str(Path("set") / "cloud1")


@pytest.mark.parametrize("value", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_degenerate_clouds_have_a_documented_result(value: float) -> None:
    one, equal = np.full((1, 3), value), np.full((4, 3), value)
    line = np.linspace(0, 1, 5)[:, None] * np.full(3, value / 2)
    for points, radius in ((one, 0.0), (equal, 0.0), (line, 1.0)):
        arrays = gather(InMemory(Path("set"), blocks=(block(points),)), "train")
        norms = np.linalg.norm(arrays.points[0], axis=1)
        assert np.isfinite(arrays.points).all() and norms.max() == pytest.approx(radius, abs=1e-5)


# The cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the cache, in which sets of every size are kept."""
    monkeypatch.setattr(cache, "MANY_BYTES", 0)
    monkeypatch.setenv("JOINTMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small_h5(path: Path, seed: int = 0) -> Path:
    with h5py.File(path, "w") as file:
        file["train/points"], file["train/label"] = np.stack([cloud(30, seed), cloud(30, seed + 1)]), [0, 1]
        file["train/part"] = np.arange(60).reshape(2, 30) % 3
    return path


def test_a_set_is_kept_once_and_mapped(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_h5(tmp_path / "set.h5")
    first = load(path)
    (entry,) = kept.iterdir()
    assert {file.name for file in entry.iterdir()} == {"points.npy", "labels.npy", "parts.npy", "meta.json"}
    monkeypatch.setattr("jointmae.data.loading.gather", None)  # what is kept is not decoded again
    again = load(path)
    assert torch.equal(again.points, first.points) and again.parts is not None and again.sha256 == first.sha256
    assert again.names == first.names and again.labels.tolist() == [0, 1]
    again.points.zero_()  # private: no file changes
    assert torch.equal(load(path).points, first.points)


def test_a_changed_file_is_read_anew(tmp_path: Path, kept: Path) -> None:
    path = small_h5(tmp_path / "set.h5")
    first = load(path)
    small_h5(path, seed=5)
    os.utime(path, ns=(0, 0))
    assert not torch.equal(load(path).points, first.points) and len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("name", ["points.npy", "labels.npy", "parts.npy", "meta.json"])
def test_damage_anywhere_in_an_entry_is_noticed(
    tmp_path: Path, kept: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_h5(tmp_path / "set.h5")
    first = load(path).select(torch.arange(2))  # a copy: the file below it is about to change
    (entry,) = kept.iterdir()
    whole = (entry / name).read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 25).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        (entry / name).write_bytes(damaged)
        clouds = load(path)
        assert "is damaged" in capsys.readouterr().out
        assert torch.equal(clouds.points, first.points) and clouds.labels.tolist() == [0, 1]
        assert clouds.names == first.names and clouds.parts is not None and torch.equal(clouds.parts, first.parts)


def test_nothing_is_kept_where_it_cannot_be_or_is_not_wanted(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_h5(tmp_path / "set.h5")
    monkeypatch.setenv("JOINTMAE_CACHE", "off")
    assert len(load(path)) == 2 and not kept.exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("JOINTMAE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="sets are decoded each time"):
        assert len(load(path)) == 2
