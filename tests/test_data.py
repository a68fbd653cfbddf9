"""Files become tensors, or a DataError that names the file, the item and what is wrong; batches repeat to the bit."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from jointmae.data import PointClouds, concat, furniture, load, normalize_unit_sphere, scale_and_shift
from jointmae.data.__main__ import main
from jointmae.data.layouts import find
from jointmae.data.layouts.layout import Block
from jointmae.errors import DataError
from jointmae.random import Purpose, keys, uniform


def random_points(S: int, N: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(S, N, 3)).astype(np.float32)


def write(path: Path, datasets: dict[str, Any], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes)
    return path


def small_set(folder: Path, name: str = "set.h5", S: int = 3, N: int = 10, **attributes: Any) -> PointClouds:
    return load(
        write(folder / name, {"train/points": random_points(S, N), "train/label": np.arange(S) - 1}, **attributes)
    )


@pytest.fixture(scope="module")
def embedded() -> PointClouds:
    return load("furniture")


# The embedded set


@pytest.mark.parametrize(
    ("split", "num_clouds", "num_labelled"), [("train", 330, 330), ("test", 84, 84), ("extra", 406, 0)]
)
def test_the_embedded_set_has_all_its_clouds(split: str, num_clouds: int, num_labelled: int) -> None:
    clouds = load("furniture", (split,))
    assert clouds.points.shape == (num_clouds, 2048, 3) and clouds.points.dtype == torch.float32
    assert len(clouds.labelled()) == num_labelled and len(clouds.names) == len(clouds) == num_clouds
    assert clouds.labels.dtype == torch.int64 and clouds.parts is None
    assert len(clouds.classes) == 13 and clouds.sha256 == furniture.SHA256
    assert torch.equal(clouds.up, torch.tensor([0.0, 1.0, 0.0]).expand(num_clouds, 3))
    assert "sweethome3d-furniture 1.8-1" in clouds.source and "CC-BY-3.0" in clouds.licence


def test_the_embedded_set_and_its_licence_are_small_and_named() -> None:
    licence = furniture.path().with_name("FURNITURE_LICENSE.md")
    assert furniture.path().stat().st_size + licence.stat().st_size <= 8_000_000
    collections = {name.split("/")[0] for name in load("furniture", ("train", "test", "extra")).names}
    assert len(collections) == 5 and all(f"`{name}`" in licence.read_text() for name in collections)


def test_loaded_clouds_are_centred_in_the_unit_sphere(embedded: PointClouds) -> None:
    torch.testing.assert_close(embedded.points.mean(dim=1), torch.zeros(330, 3), atol=1e-6, rtol=0)  # float32 means
    torch.testing.assert_close(embedded.points.norm(dim=2).amax(dim=1), torch.ones(330))


def test_splits_are_joined_in_the_order_asked_for(embedded: PointClouds) -> None:
    joined = load("furniture", ("test", "train"))
    assert len(joined) == 414 and joined.title == "furniture" and joined.sha256 == embedded.sha256
    assert torch.equal(joined.points[84:], embedded.points) and torch.equal(joined.labels[84:], embedded.labels)


def test_describe_says_what_there_is(embedded: PointClouds, tmp_path: Path) -> None:
    wanted = "furniture (jointmae h5): 330 clouds x 2,048 points, 13 classes, 330 labelled, 0 bad files"
    assert embedded.describe() == wanted
    unlabelled = load(write(tmp_path / "plain.h5", {"points": random_points(1, 4)}))
    assert unlabelled.describe() == "plain (jointmae h5): 1 cloud x 4 points, no labels, 0 bad files"


def test_a_damaged_embedded_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(furniture, "path", lambda: write(tmp_path / "furniture.h5", {"points": random_points(1, 4)}))
    with pytest.raises(DataError, match="the embedded data set is damaged: install jointmae again"):
        load("furniture")


# Our h5 form


def test_points_alone_are_enough(tmp_path: Path) -> None:
    clouds = load(write(tmp_path / "set.h5", {"train/points": random_points(2, 5)}))
    assert clouds.labels.tolist() == [-1, -1] and clouds.classes == () and clouds.names == ("train/0", "train/1")
    assert clouds.up.tolist() == [[0, 1, 0]] * 2 and (clouds.source, clouds.licence) == ("", "")


def test_everything_optional_is_read(tmp_path: Path) -> None:
    datasets = {
        "test/points": random_points(2, 5).astype(np.float16),
        "test/label": np.array([1, -1], dtype=np.int16),
        "test/name": ["one", "Ständer"],
        "test/part": np.array([[0, 1, 0, 1, 1]] * 2, dtype=np.uint8),
    }
    attributes = {"classes": ["a", "b"], "part_names": ["leg", "top"], "up_axis": "-z", "source": "s", "licence": "l"}
    clouds = load(write(tmp_path / "set.h5", datasets, **attributes), ("test",))
    assert clouds.labels.tolist() == [1, -1] and clouds.names == ("one", "Ständer")
    assert clouds.classes == ("a", "b") and clouds.part_names == ("leg", "top")
    assert clouds.parts is not None and clouds.parts.tolist() == [[0, 1, 0, 1, 1]] * 2
    assert clouds.up.tolist() == [[0, 0, -1]] * 2 and (clouds.source, clouds.licence) == ("s", "l")
    assert clouds.labelled().names == ("one",)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8"])
def test_points_of_every_float_type_are_read(tmp_path: Path, dtype: str) -> None:
    points = np.round(random_points(2, 5) * 16).astype(dtype) / np.dtype(dtype).type(16)
    (block,) = find(write(tmp_path / "set.h5", {"train/points": points})).blocks("train")
    assert isinstance(block, Block) and block.points.dtype == np.float32
    expected = points - points[:, :1] if dtype.endswith("f8") else points
    np.testing.assert_array_equal(block.points, expected.astype(np.float32).reshape(-1, 3))


def test_float64_map_coordinates_keep_their_shape(tmp_path: Path) -> None:
    """A cloud of 1 m at UTM coordinates: float32 knows no centimetres there."""
    points = random_points(1, 200).astype(np.float64)
    near = load(write(tmp_path / "near.h5", {"points": points})).points
    far = load(write(tmp_path / "far.h5", {"points": points + np.array([5e5, 5e6, 100.0])})).points
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


def test_a_flat_file_is_split_by_its_test_array(tmp_path: Path) -> None:
    datasets = {
        "points": random_points(3, 4),
        "label": [0, 1, 2],
        "test": [False, True, False],
        "classes": ["a", "b", "c"],
    }
    path = write(tmp_path / "set.h5", datasets)
    assert load(path).labels.tolist() == [0, 2] and load(path, ("test",)).labels.tolist() == [1]
    assert load(path).names == ("0", "2") and load(path).classes == ("a", "b", "c")


def test_a_flat_file_without_a_test_array_is_all_train(tmp_path: Path) -> None:
    path = write(tmp_path / "set.h5", {"points": random_points(3, 4)})
    assert len(load(path)) == 3
    with pytest.raises(DataError, match="test: there is no such split: the set has train"):
        load(path, ("test",))


def test_classes_without_names_are_counted_over_all_splits(tmp_path: Path) -> None:
    datasets = {"train/points": random_points(2, 4), "train/label": [0, 1]}
    path = write(tmp_path / "set.h5", datasets | {"test/points": random_points(1, 4), "test/label": [2]})
    assert load(path).classes == load(path, ("test",)).classes == ("0", "1", "2")


def with_nan(cloud: int, row: int, value: float = np.nan, dtype: str = "f4") -> np.ndarray[Any, Any]:
    points = random_points(3, 5).astype(dtype)
    points[cloud, row, 2] = value
    return points


GOOD = random_points(3, 5)
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"points": with_nan(1, 4)}, {}, "points: cloud 1 ('1'), row 4 is ["),
    ({"points": with_nan(2, 0, np.inf), "name": ["a", "b", "c"]}, {}, "points: cloud 2 ('c'), row 0 is ["),
    ({"points": with_nan(0, 1, 1e39, "f8")}, {}, "points: cloud 0 ('0'), row 1 is ["),
    ({"points": GOOD[:0]}, {}, "points: got shape [0, 5, 3], wanted at least one cloud of one point"),
    ({"points": GOOD[:, :0]}, {}, "points: got shape [3, 0, 3], wanted at least one cloud of one point"),
    ({"points": GOOD[0]}, {}, "points: got float32 [5, 3], wanted float16, float32 or float64 [S, N, 3]"),
    ({"points": GOOD[:, :, :2]}, {}, "points: got float32 [3, 5, 2], wanted"),
    ({"points": GOOD.astype(int)}, {}, "points: got int64 [3, 5, 3], wanted"),
    ({"points": GOOD, "label": [0, 1]}, {}, "label: got shape [2], wanted [3]"),
    ({"points": GOOD, "label": [0, 1, 2]}, {"classes": ["a", "b"]}, "label: got 2 at [2], wanted -1..1"),
    ({"points": GOOD, "label": [0, -2, 0]}, {"classes": ["a", "b"]}, "label: got -2 at [1], wanted -1..1"),
    ({"points": GOOD, "label": [0, -2, 0]}, {}, "label: got -2 at [1], wanted -1..65535"),
    ({"points": GOOD, "label": [0, 2**40, 0]}, {}, "label: got 1099511627776 at [1], wanted -1..65535"),
    ({"points": GOOD, "label": [0.0, 1.0, 2.0]}, {}, "label: got float64, wanted integers"),
    ({"points": GOOD, "name": ["a", "b"]}, {}, "name: got shape [2], wanted [3]"),
    ({"points": GOOD, "part": np.zeros((3, 4), int)}, {}, "part: got shape [3, 4], wanted [3, 5]"),
    ({"points": GOOD, "part": np.full((3, 5), 256)}, {}, "part: got 256 at [0, 0], wanted 0..255"),
    ({"points": GOOD, "part": np.full((3, 5), 2)}, {"part_names": ["a", "b"]}, "part: got 2 at [0, 0], wanted 0..1"),
    ({"points": GOOD, "test": [True]}, {}, "test: got shape [1], wanted [3]"),
    ({"points": GOOD}, {"up_axis": "up"}, "up_axis: got 'up', wanted one of +x, -x, +y, -y, +z, -z"),
    ({"points": GOOD}, {"classes": 3}, "classes: got int64 [1], wanted a string or a list of them"),
    ({"points": GOOD, "train/points": GOOD}, {}, "points: is at the root and in group train"),
    ({"data": GOOD, "label": [0]}, {}, "got data, label, wanted a dataset train/points or points [S, N, 3]"),
    ({}, {}, "got nothing, wanted a dataset train/points or points [S, N, 3]"),
]


@pytest.mark.parametrize(("datasets", "attributes", "what"), BAD, ids=[case[2][:40] for case in BAD])
def test_wrong_files_are_named_with_what_is_wrong(
    tmp_path: Path, datasets: dict[str, Any], attributes: dict[str, Any], what: str
) -> None:
    path = write(tmp_path / "set.h5", datasets, **attributes)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        load(path)
    assert caught.value.file == str(path) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.h5", 'does not exist: give the path of an .h5 file, of a folder or a file of shapes, or "furniture"'),
        ("set.png", "got .png, wanted an .h5 file, one of .zip .sh3f, or one of .csv .glb .las "),
        ("set.laz", ".xyz: unpack it to .las first"),
        ("set.pkl", ".xyz: pickles are never loaded, save arrays as .npz"),
        ("folder", "got no shape among 0 files, wanted one of "),
        ("folder.h5", "got no shape among 0 files, wanted one of "),
    ],
)
def test_paths_that_are_no_files_of_ours_are_named(tmp_path: Path, name: str, what: str) -> None:
    for suffix in ("png", "laz", "pkl"):
        (tmp_path / f"set.{suffix}").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}: .*{re.escape(what)}"):
        load(tmp_path / name)


def test_no_split_at_all_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="load: splits must name at least one split, got none"):
        load("furniture", ())


# Normalisation and augmentation


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 3e37])
def test_clouds_of_any_size_and_place_fill_the_unit_sphere(scale: float) -> None:
    points = normalize_unit_sphere(torch.from_numpy(random_points(4, 50)) * scale)
    torch.testing.assert_close(points.norm(dim=-1).amax(dim=-1), torch.ones(4))
    torch.testing.assert_close(points.mean(dim=-2), torch.zeros(4, 3), atol=1e-6, rtol=0)  # float32 means


@pytest.mark.parametrize("place", [[0.0, 0.0, 0.0], [0.1, 0.2, 0.3], [1e30, -1e-30, 7.0]])
def test_equal_points_become_zero(place: list[float]) -> None:
    assert torch.equal(normalize_unit_sphere(torch.tensor(place).expand(2, 33, 3)), torch.zeros(2, 33, 3))


def test_one_point_and_no_clouds() -> None:
    assert torch.equal(normalize_unit_sphere(torch.ones(1, 3)), torch.zeros(1, 3))
    assert normalize_unit_sphere(torch.empty(0, 5, 3)).shape == (0, 5, 3)


def augmentation_keys(B: int, epoch: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.arange(B)
    return keys(0, epoch, ids, Purpose.SCALE), keys(0, epoch, ids, Purpose.SHIFT)


def test_augmentation_scales_and_shifts_within_its_ranges() -> None:
    corners = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]).expand(2000, 2, 3)
    moved = scale_and_shift(corners, *augmentation_keys(2000), normalize=False)
    shifts, scales = moved[:, 0], moved[:, 1] - moved[:, 0]
    for values, low, high in ((shifts, -0.2, 0.2), (scales, 2 / 3, 3 / 2)):
        assert low - 1e-6 <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02


def test_augmented_clouds_stay_in_the_unit_sphere_and_depend_on_the_keys(embedded: PointClouds) -> None:
    points = embedded.points[:8]
    first = scale_and_shift(points, *augmentation_keys(8))
    torch.testing.assert_close(first.norm(dim=2).amax(dim=1), torch.ones(8))
    assert torch.equal(first, scale_and_shift(points, *augmentation_keys(8)))
    assert not torch.equal(first, scale_and_shift(points, *augmentation_keys(8, epoch=1)))
    alone = scale_and_shift(points[5:6], *(key[5:6] for key in augmentation_keys(8)))
    torch.testing.assert_close(alone[0], first[5])


def test_augmentation_without_range_changes_nothing(embedded: PointClouds) -> None:
    same = scale_and_shift(embedded.points[:2], *augmentation_keys(2), scale=(1.0, 1.0), shift=0.0, normalize=False)
    assert torch.equal(same, embedded.points[:2])


# Batches


def test_a_batch_is_a_random_subset_that_repeats(embedded: PointClouds) -> None:
    ids = torch.tensor([5, 0, 329])
    batch = embedded.batch(ids, 1024, seed=1, epoch=2)
    assert batch.shape == (3, 1024, 3) and torch.equal(batch, embedded.batch(ids, 1024, 1, torch.tensor(2)))
    for points, cloud in zip(batch, embedded.points[ids], strict=True):
        rows = {tuple(row) for row in cloud.tolist()}
        assert {tuple(row) for row in points.tolist()} <= rows
    for other in (
        embedded.batch(ids, 1024, 1, 3),
        embedded.batch(ids, 1024, 2, 2),
        embedded.batch(ids[[1, 0, 2]], 1024, 1, 2),
    ):
        assert not torch.equal(batch, other)
    assert torch.equal(embedded.batch(ids[1:2], 1024, 1, 2)[0], batch[1])


def test_a_subset_has_no_row_twice() -> None:
    points = torch.arange(100.0).repeat(3, 1)[..., None].expand(3, 100, 3)
    clouds = PointClouds(
        title="t", layout="", points=points, labels=torch.zeros(3, dtype=torch.int64), names=("a", "b", "c"),
        up=points[:, 0], classes=("x",), parts=None, part_names=(), source="", licence="", sha256="",
    )  # fmt: skip
    batch = clouds.batch(torch.arange(3), 60, seed=0, epoch=0)[..., 0]
    assert all(len(row.unique()) == 60 for row in batch)


@pytest.mark.parametrize("num_points", [10, 11, 25])
def test_small_clouds_repeat_cyclically(tmp_path: Path, num_points: int) -> None:
    clouds = small_set(tmp_path)
    rows = torch.arange(num_points) % 10
    assert torch.equal(clouds.batch(torch.tensor([2, 1]), num_points, 0, 0), clouds.points[[2, 1]][:, rows])
    assert torch.equal(clouds.first(num_points).points, clouds.points[:, rows])


def test_an_empty_batch_and_no_points(embedded: PointClouds) -> None:
    assert embedded.batch(torch.empty(0, dtype=torch.int64), 64, 0, 0).shape == (0, 64, 3)
    for draw in (lambda: embedded.batch(torch.tensor([0]), 0, 0, 0), lambda: embedded.first(0)):
        with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
            draw()


def test_first_takes_the_first_rows_and_their_parts(tmp_path: Path) -> None:
    datasets = {"points": random_points(2, 5), "part": np.arange(10).reshape(2, 5)}
    first = load(write(tmp_path / "set.h5", datasets)).first(7)
    assert first.points.shape == (2, 7, 3) and first.parts is not None
    assert first.parts.tolist() == [[0, 1, 2, 3, 4, 0, 1], [5, 6, 7, 8, 9, 5, 6]]


def test_batch_and_augmentation_compile_into_one_graph(embedded: PointClouds) -> None:
    def step(ids: Tensor, epoch: Tensor) -> Tensor:
        points = embedded.batch(ids, 64, 0, epoch)
        return scale_and_shift(points, keys(0, epoch, ids, Purpose.SCALE), keys(0, epoch, ids, Purpose.SHIFT))

    ids, epoch = torch.tensor([3, 1]), torch.tensor(4)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, epoch), step(ids, epoch))


# Several sets


def test_concat_keeps_up_axes_and_renames_classes(tmp_path: Path) -> None:
    one = small_set(tmp_path, "one.h5", S=3, N=10, classes=["a", "b"], up_axis="+z", source="s1", licence="l")
    two = small_set(tmp_path, "two.h5", S=2, N=16, classes=["b", "c"], up_axis="-y", source="s2", licence="l")
    both = concat([one, two])
    assert both.title == "one+two" and both.points.shape == (5, 16, 3)
    assert both.classes == ("one/a", "one/b", "two/b", "two/c") and both.labels.tolist() == [-1, 0, 1, -1, 2]
    assert both.up.tolist() == [[0, 0, 1]] * 3 + [[0, -1, 0]] * 2
    assert both.source == "s1; s2" and both.licence == "l"
    assert both.sha256 not in (one.sha256, two.sha256) and both.sha256 != concat([two, one]).sha256
    assert torch.equal(both.points[3:], two.points)
    assert torch.equal(both.points[:3], one.points[:, torch.arange(16) % 10])


def test_concat_to_fewer_points_is_a_fixed_subset_with_its_parts(tmp_path: Path) -> None:
    points = random_points(2, 30)
    datasets = {"points": points, "part": np.arange(30)[None].repeat(2, axis=0)}
    clouds = load(write(tmp_path / "set.h5", datasets))
    fewer = concat([clouds, clouds], num_points=12)
    assert fewer.points.shape == (4, 12, 3) and fewer.parts is not None
    assert torch.equal(fewer.points, concat([clouds, clouds], num_points=12).points)
    for i in range(4):
        assert torch.equal(fewer.points[i], clouds.points[i % 2][fewer.parts[i].long()])
        assert len(fewer.parts[i].unique()) == 12


def test_concat_of_sets_with_equal_classes_shares_them(embedded: PointClouds) -> None:
    both = concat([embedded, load("furniture", ("test",))])
    assert both.classes == embedded.classes and both.labels[:330].equal(embedded.labels)
    assert both.sha256 == embedded.sha256 and both.title == "furniture"


def test_concat_tells_sets_of_one_name_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sets = [small_set(tmp_path, classes=["a", "b"]), small_set(tmp_path / "other", classes=["c", "d"])]
    assert concat(sets).classes == ("set#0/a", "set#0/b", "set#1/c", "set#1/d")


def test_concat_of_nothing_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="concat: wanted at least one set, got none"):
        concat([])


def test_moving_to_a_device_keeps_everything(embedded: PointClouds) -> None:
    moved = embedded.to("meta")
    assert moved.device.type == moved.labels.device.type == moved.up.device.type == "meta"
    assert moved.names == embedded.names and moved.classes == embedded.classes


# The command


def test_the_command_prints_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "set.h5", {"train/points": random_points(2, 5), "train/label": [0, -1]}, source="a\x1b[2Jb")
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path}: jointmae h5, 1 class, up +y" in out and "train: 2 clouds x 5 points, 1 labelled" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "/nowhere/set.h5"], 3, "error: /nowhere/set.h5: does not exist"),
        (["inof"], 2, "Did you mean info?"),
        (["set.h5"], 2, "Did you mean info set.h5?"),
        (["info", "--pth", "x"], 2, "--pth"),
    ],
)
def test_the_command_answers_mistakes(arguments: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-m", "jointmae.data", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == code and message in run.stderr


def test_the_command_does_not_wait_for_torch() -> None:
    code = (
        "import sys, jointmae.data.__main__ as m\ntry: m.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.startswith(b"usage:")


def test_uniform_keys_are_not_shared_between_scale_and_shift() -> None:
    scale_keys, shift_keys = augmentation_keys(100)
    assert not torch.equal(uniform(scale_keys, 3), uniform(shift_keys, 3))
