"""Each finding is found where it is, and nothing is found in a clean set."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jointmae.data import official
from jointmae.data.__main__ import main
from jointmae.data.check import MAX_EXAMPLES, Findings, Listing, check
from jointmae.data.check_print import report
from jointmae.data.layouts.layout import Block, Layout
from jointmae.data.layouts.modelnet_hdf5 import ModelNetHdf5
from jointmae.data.layouts.modelnet_resampled import ModelNetResampled
from jointmae.data.layouts.scanobjectnn import ScanObjectNN
from jointmae.data.layouts.shapenet55 import ShapeNet55
from jointmae.data.layouts.shapenet_part import ShapeNetPart
from jointmae.data.measure import Measures, measure, row_hashes
from jointmae.errors import DataError
from tests import official_sets
from tests.official_sets import random_clouds

Cloud = np.ndarray[Any, Any]


def measures_of(*clouds: Cloud) -> list[Measures]:
    return measure(
        Block(
            points=np.concatenate(clouds).astype(np.float32),
            sizes=np.array([len(points) for points in clouds]),
            labels=np.zeros(len(clouds), np.int64),
            names=tuple(map(str, range(len(clouds)))),
            parts=None,
            file=Path("set.h5"),
        )
    )


def edit(path: Path, change: Callable[[Cloud], None]) -> None:
    """Change the clouds of an HDF5 file in place."""
    with h5py.File(path, "r+") as file:
        points = file["data"][()]
        change(points)
        file["data"][...] = points


def set_with(folder: Path, change: Callable[[Cloud], None]) -> Findings:
    """The findings of a ModelNet40 whose first train file was changed."""
    root = official_sets.modelnet_hdf5(folder)
    edit(root / "ply_data_train0.h5", change)
    return check(ModelNetHdf5(root))


# Single clouds


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
    ("points", "shape"),
    [
        ([[1, 2, 3]], "one point"),
        ([[1, 2, 3]] * 5, "all points equal"),
        ([[0, 0, 0]] * 2, "all points equal"),
        ([[0, 0, 0], [1, 2, 3]], "points on a line"),
        ([[0.1 * i, 0.3 * i, -0.7 * i] for i in range(9)], "points on a line"),
        ([[0, 0, 0], [1, 2, 3], [1, 0, 0]], "points in a plane"),
        ([[i % 5, i // 5, 0.3 * (i % 5) + 0.1 * (i // 5)] for i in range(25)], "points in a plane"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], ""),
        ([[i % 5, i // 5, 1e-3 * (i % 2)] for i in range(25)], ""),
    ],
)
def test_clouds_without_volume_are_told_by_their_extent(points: list[list[float]], shape: str, scale: float) -> None:
    (found,) = measures_of(np.array(points) * scale)
    assert found.shape == shape and not len(found.bad_rows)


def test_the_radius_is_the_distance_from_the_centre_of_mass() -> None:
    small, large = measures_of(np.array([[0, 0, 0], [2, 0, 0]]), np.array([[1e38, 0, 0], [-1e38, 0, 0]]))
    assert small.radius == 1 and large.radius == pytest.approx(1e38)


def test_bad_rows_are_named() -> None:
    points = random_clouds(1, 6)[0]
    points[2, 1], points[5] = np.inf, np.nan
    good, bad = measures_of(random_clouds(1, 4)[0], points)
    assert not len(good.bad_rows) and bad.bad_rows.tolist() == [2, 5] and bad.shape == "" and np.isnan(bad.radius)


def test_repeated_points_are_counted() -> None:
    points = random_clouds(1, 6)[0]
    once, twice = measures_of(points, np.concatenate([points, points[:3]]))
    assert once.repeated == 0 and twice.repeated == pytest.approx(3 / 9)


@given(N=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_digest_is_of_the_points_whatever_their_order(N: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(N, 3)).astype(np.float32)
    other = points.copy()
    other[rng.integers(N), rng.integers(3)] = np.nextafter(other[0, 0] + 9, 99)
    first, shuffled, changed, fewer = measures_of(points, rng.permutation(points), other, np.concatenate([points] * 2))
    assert first.digest == shuffled.digest and len({first.digest, changed.digest, fewer.digest}) == 3
    swapped = points[:, [1, 0, 2]]
    assert (measures_of(swapped)[0].digest == first.digest) == bool((swapped == points).all())


def test_hashes_of_a_grid_do_not_collide() -> None:
    axis = np.arange(-32, 32, dtype=np.float32) / 32
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    assert len(np.unique(row_hashes(points))) == 64**3


# Whole sets


@pytest.mark.parametrize(
    ("writer", "layout", "variant"),
    [
        (official_sets.modelnet_hdf5, ModelNetHdf5, ""),
        (official_sets.modelnet_resampled, ModelNetResampled, "modelnet10"),
        (official_sets.scanobjectnn, ScanObjectNN, "pb_t50_rs"),
        (official_sets.shapenet55, ShapeNet55, "shapenet55"),
        (official_sets.shapenet_part_txt, ShapeNetPart, "txt"),
        (official_sets.shapenet_part_hdf5, ShapeNetPart, "hdf5"),
    ],
)
def test_in_a_clean_set_only_the_counts_differ(
    tmp_path: Path, writer: Callable[[Path], Path], layout: Callable[[Path, str], Layout], variant: str
) -> None:
    findings = check(layout(writer(tmp_path), variant))
    assert findings.exit_code == 0 and findings.get and findings.terms and findings.up_axis == "+y"
    for listing in (findings.bad_files, findings.not_finite, findings.degenerate, findings.duplicates):
        assert listing == Listing()
    for split in findings.splits:
        assert split.num_clouds == split.listed == sum(split.per_class) > 0 and split.unlabelled == 0
        assert split.repeated == 0 and split.radius is not None and 0.5 < split.radius[0] <= split.radius[2] < 2
    assert any("official are" in line for line in findings.differences)


def test_in_an_official_set_nothing_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = official.table("modelnet_hdf5")
    counts = {"counts": {"train": 10, "test": 5}, "counts_per_class": {"test": [0] * 20 + [1] * 5 + [0] * 15}}
    variant = table["variants"][""] | counts
    monkeypatch.setattr(official, "table", lambda _: table | {"variants": {"": variant}, "num_points": 16})
    findings = check(ModelNetHdf5(official_sets.modelnet_hdf5(tmp_path)))
    assert findings.differences == [] and findings.exit_code == 0
    lines = list(report(findings))
    assert lines[1] == "  train: 10 clouds x 16 points" + lines[1][lines[1].index(", radius") :]
    assert lines[3] == "Training takes this set."


def test_differences_from_the_official_set_are_listed(tmp_path: Path) -> None:
    differences = check(ShapeNet55(official_sets.shapenet55(tmp_path), "shapenet55")).differences
    numbers = official.find("ShapeNet55", "shapenet55")
    assert numbers is not None
    assert "train: got 3 clouds, official are 41,952" in differences
    benches = numbers.counts_per_class["test"][numbers.classes.index("bench")]
    assert f"test, class bench: got 0 clouds, official are {benches}" in differences and benches > 100
    assert "train: got clouds of 20 points, official are 8,192" in differences
    assert "ShapeNet-55/train.txt: is not the official list, by its SHA-256" in differences


def test_classes_in_another_order_are_a_difference(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    official_sets.write_lines(root / "shape_names.txt", official_sets.MODELNET40[::-1])
    assert check(ModelNetHdf5(root)).differences[0].startswith("classes: got 40 that are not the official ('airplane'")


def test_points_that_are_not_finite_are_found(tmp_path: Path) -> None:
    def change(points: Cloud) -> None:
        points[3, [2, 7], 0] = np.nan
        points[4, :, 1] = np.inf

    findings = set_with(tmp_path, change)
    assert findings.exit_code == 3 and findings.not_finite.examples == [
        {"split": "train", "name": "ply_data_train0.h5/3", "count": 2, "rows": [2, 7]},
        {"split": "train", "name": "ply_data_train0.h5/4", "count": 16, "rows": list(range(16))},
    ]
    text = "\n".join(report(findings))
    assert "2 clouds have points that are NaN or infinite:\n" in text
    assert "train, ply_data_train0.h5/3: 2 points, in rows 2, 7" in text and "Training refuses this set" in text


def test_clouds_without_volume_are_found(tmp_path: Path) -> None:
    def change(points: Cloud) -> None:
        points[0] = points[0, 0]
        points[2, :, 2] = 0

    findings = set_with(tmp_path, change)
    assert findings.exit_code == 0 and findings.degenerate.examples == [
        {"split": "train", "name": "ply_data_train0.h5/0", "what": "all points equal"},
        {"split": "train", "name": "ply_data_train0.h5/2", "what": "points in a plane"},
    ]
    assert findings.splits[0].repeated == pytest.approx(15 / 160)


def test_duplicates_are_found_within_and_between_splits(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    train, test = random_clouds(5, 16, seed=0), random_clouds(5, 16, seed=2)
    edit(root / "ply_data_train0.h5", lambda points: points.__setitem__(4, train[1, ::-1]))
    edit(root / "ply_data_test0.h5", lambda points: points.__setitem__(0, np.roll(train[2], 3, axis=0)))
    findings = check(ModelNetHdf5(root))
    assert findings.duplicates_by_splits == {"train in train": 1, "test in train": 1} and findings.exit_code == 0
    assert findings.duplicates.examples == [
        {"split": "train", "name": "ply_data_train0.h5/4", "of_split": "train", "of_name": "ply_data_train0.h5/1"},
        {"split": "test", "name": "ply_data_test0.h5/0", "of_split": "train", "of_name": "ply_data_train0.h5/2"},
    ]
    assert not (test[0] == train[2]).all()
    text = "\n".join(report(findings))
    assert "2 clouds are there already, point for point (1 of train in train, 1 of test in train):" in text


def test_bad_files_are_found(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    (root / "ply_data_train1.h5").write_bytes(b"not HDF5")
    findings = check(ModelNetHdf5(root))
    (bad,) = findings.bad_files.examples
    assert bad["split"] == "train" and bad["name"] == "ply_data_train1.h5" and "cannot be opened as HDF5" in bad["what"]
    assert findings.exit_code == 3 and findings.splits[0].listed is None and findings.splits[0].num_clouds == 5


def test_a_missing_cloud_is_a_bad_file(tmp_path: Path) -> None:
    layout = ShapeNet55(official_sets.shapenet55(tmp_path), "shapenet55")
    layout.files()[2].unlink()
    findings = check(layout)
    assert findings.bad_files.count == 1 and findings.splits[0].listed == 3 and findings.splits[0].num_clouds == 2
    assert "  train: 2 of 3 clouds x 20 points" in "\n".join(report(findings))


def test_all_findings_are_counted_and_some_kept() -> None:
    listing = Listing()
    for i in range(MAX_EXAMPLES + 5):
        listing.add(i=i)
    assert listing.count == MAX_EXAMPLES + 5 and len(listing.examples) == MAX_EXAMPLES


def test_few_examples_are_printed(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path, S=20)
    edit(root / "ply_data_train0.h5", lambda points: points.fill(np.nan))
    lines = list(report(check(ModelNetHdf5(root))))
    start = lines.index("20 clouds have points that are NaN or infinite:")
    assert lines[start + 11] == "  and 10 more" and len(lines) < 50


# The command


def test_the_command_prints_writes_and_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    out = tmp_path / "findings.json"
    assert main(["check", str(root), "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(asdict(check(ModelNetHdf5(root)))))
    text = capsys.readouterr().out
    assert text.startswith(f"{root}: ModelNet40 (hdf5), 40 classes, up +y\n") and "Training takes this set.\n" in text
    edit(root / "ply_data_test0.h5", lambda points: points.fill(np.nan))
    assert main(["check", str(root), "--json", str(out)]) == 3
    assert json.loads(out.read_text())["splits"][1]["radius"] is None


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    root = official_sets.modelnet_hdf5(tmp_path)
    official_sets.write_lines(root / "test_files.txt", ["\x1b[2J.h5"])
    with pytest.raises(DataError, match="2J.h5 does not exist"):
        main(["check", str(root)])


def test_names_in_files_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = official_sets.modelnet_hdf5(tmp_path / "set")
    shutil.move(root, tmp_path / "\x1b[2Jred")
    assert main(["check", str(tmp_path / "\x1b[2Jred")]) == 0
    assert "\x1b" not in capsys.readouterr().out
