"""`data convert`: the same bytes however it came to its end, all of the shapes or a word about each that is bad."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from jointmae.data import convert_work, load, normalize_unit_sphere
from jointmae.data.commands.convert import main
from jointmae.data.hdf5 import open_hdf5
from jointmae.data.resample import is_test, resample, seed_of, to_unit_sphere
from tests.runs import Outcome, contents, fails, run
from tests.shape_files import EXAMPLES, POINTS, npy

Convert = Callable[..., Outcome]


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Convert:
    """The command with 64 points a cloud and one worker, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *argv: run(main, ["--num-points", "64", "--workers", "1", *map(str, argv)], monkeypatch, capfd)


def random_cloud(num_points: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_points, 3)).astype(np.float32)


def write_shapes(root: Path, count: int = 6) -> Path:
    """Clouds and meshes of two classes."""
    for i in range(count):
        file = root / ("cube" if i % 2 else "rod") / f"{i}{'.npy' if i % 3 else '.off'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(npy(random_cloud(seed=i)) if i % 3 else EXAMPLES["pyramid.off"])
    return root


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return archive


def by_name(path: Path, split: str = "train") -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return dict(zip(file[f"{split}/name"].asstr()[:], file[f"{split}/points"][:], strict=True))


# What is written


def test_a_folder_becomes_a_set(convert: Convert, tmp_path: Path) -> None:
    before = contents(write_shapes(tmp_path / "set"))
    done = convert("set", "set.h5", "--source", "a fair", "--licence", "Größe: CC0", "--up-axis", "-z")
    assert done.code == 0 and "set.h5: 6 train clouds x 64 points, 2 classes; " in done.out, done
    assert contents(tmp_path / "set") == before and sorted(os.listdir(tmp_path)) == ["set", "set.h5"]
    clouds = load("set.h5")
    assert clouds.points.shape == (6, 64, 3) and clouds.classes == ("cube", "rod")
    assert clouds.names == ("cube/1.npy", "cube/3.off", "cube/5.npy", "rod/0.off", "rod/2.npy", "rod/4.npy")
    assert clouds.labels.tolist() == [0, 0, 0, 1, 1, 1] and clouds.up[0].tolist() == [0, 0, -1]
    assert clouds.source == "a fair" and clouds.licence == "Größe: CC0"
    with h5py.File("set.h5") as file:
        stored = torch.from_numpy(file["train/points"][:])
    torch.testing.assert_close(stored.norm(dim=2).amax(1), torch.ones(6))
    torch.testing.assert_close(stored.mean(1), torch.zeros(6, 3), atol=1e-6, rtol=0)


def test_bytes_do_not_depend_on_workers_time_or_place(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", 30)
    assert convert("set", "a.h5").code == 0
    shutil.copytree("set", "elsewhere/set", copy_function=shutil.copy)
    assert convert("elsewhere/set", "b.h5", "--workers", "3").code == 0
    assert convert(pack(tmp_path / "set", tmp_path / "set.zip"), "c.h5").code == 0
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes() == Path("c.h5").read_bytes()


def test_points_depend_on_the_name_and_the_seed_alone(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", 6)
    assert convert("set", "a.h5").code == 0
    (tmp_path / "set/rod/0.off").rename(tmp_path / "set/rod/new.off")
    (tmp_path / "set/cube/1.npy").unlink()
    assert convert("set", "b.h5").code == convert("set", "c.h5", "--seed", "1").code == 0
    a, b, c = map(by_name, map(Path, ("a.h5", "b.h5", "c.h5")))
    for name in a.keys() & b.keys():
        np.testing.assert_array_equal(a[name], b[name])
        assert not np.array_equal(a[name], c[name])
    assert not np.array_equal(a["rod/0.off"], b["rod/new.off"])


@pytest.mark.parametrize("num_points", [10, 50, 64, 200])
def test_clouds_are_subsets_or_repeats_in_random_order(num_points: int) -> None:
    points = random_cloud(50).astype(float)
    rows = {tuple(row): i for i, row in enumerate(points)}
    got = [rows[tuple(row)] for row in resample(points, num_points, seed=3)]
    assert len(got) == num_points and len(set(got)) == min(num_points, 50) and got != sorted(got)
    assert got[50:] == got[: len(got) - 50][: max(0, num_points - 50)]  # over and over
    assert got == [rows[tuple(row)] for row in resample(points, num_points, seed=3)]
    assert got != [rows[tuple(row)] for row in resample(points, num_points, seed=4)]


def test_seeds_and_splits_have_the_values_they_always_had() -> None:
    """A file that was converted with an earlier version must come out the same."""
    assert seed_of(0, "chair/1.off") == 8622851063961369051 and seed_of(1, "chair/1.off") == 538141891093996123
    assert [i for i in range(20) if is_test(f"{i}.off", 0.2)] == [1, 7, 13]
    assert resample(np.arange(15.0).reshape(5, 3), 3, seed=7)[:, 0].tolist() == [9.0, 12.0, 0.0]


@pytest.mark.parametrize("cloud", [random_cloud() * 1e-30, random_cloud() * 1e30, random_cloud() + 1e4, POINTS[:1]])
def test_the_unit_sphere_is_that_of_the_loader(cloud: np.ndarray) -> None:
    expected = normalize_unit_sphere(torch.from_numpy(cloud.astype(np.float64)))
    torch.testing.assert_close(torch.from_numpy(to_unit_sphere(cloud.astype(np.float64))), expected)


def test_a_mesh_is_sampled_by_area_and_a_cloud_keeps_its_points(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mesh.off").write_bytes(b"OFF 4 2 0\n0 0 0\n9 0 0\n9 1 0\n0 1 0\n4 0 1 2 3\n3 0 0 0\n")
    (tmp_path / "set/cloud.npy").write_bytes(npy(POINTS + 1e6))
    assert convert("set", "set.h5").code == 0
    got = by_name(tmp_path / "set.h5")
    x, y, z = got["mesh.off"].T
    assert len(np.unique(x)) == 64 and np.ptp(x) > 7 * np.ptp(y) > 0 and np.ptp(z) == 0
    np.testing.assert_allclose(
        np.unique(got["cloud.npy"].round(5), axis=0),
        np.unique(to_unit_sphere(resample(POINTS.astype(float), 64, seed_of(0, "cloud.npy"))).round(5), axis=0),
        atol=0.1,  # float32 knows no 0.05 at a million
    )


def test_float16_is_half_as_large(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set")
    assert convert("set", "a.h5").code == convert("set", "b.h5", "--dtype", "float16").code == 0
    a, b = by_name(tmp_path / "a.h5"), by_name(tmp_path / "b.h5")
    assert all(b[name].dtype == np.float16 and np.array_equal(b[name], a[name].astype(np.float16)) for name in a)


def test_splits_come_from_folders_or_from_names(convert: Convert, tmp_path: Path) -> None:
    for name in ("train/a", "test/a", "val/b"):
        write_shapes(tmp_path / "set" / name, 2)
    assert convert("set", "a.h5").code == 0
    with h5py.File("a.h5") as file:
        assert {split: len(file[split]["points"]) for split in ("train", "test", "val")} == dict(train=2, test=2, val=2)
        assert file["classes"].asstr()[:].tolist() == ["a", "b"] and file["val/label"][:].tolist() == [1, 1]
    refused = convert("set", "b.h5", "--test-fraction", "0.5")
    assert fails(refused, 2, "--test-fraction is for sources without splits")
    write_shapes(tmp_path / "plain", 20)
    assert convert("plain", "b.h5", "--test-fraction", "0.3").code == 0
    assert 2 <= len(load("b.h5", ("test",))) <= 12
    assert all(is_test(name, 0.3) for name in load("b.h5", ("test",)).names)


def test_several_sources_share_classes(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "one")
    pack(write_shapes(tmp_path / "two", 2), tmp_path / "two.zip")
    assert convert("one", "two.zip", "set.h5").code == 0
    clouds = load("set.h5")
    assert len(clouds) == 8 and clouds.classes == ("cube", "rod") and clouds.names[-1] == "two.zip/rod/0.off"
    write_shapes(tmp_path / "other/one")
    assert fails(convert("one", "other/one", "b.h5"), 2, "two sources are called one")


def test_several_sources_without_classes_are_one_each(convert: Convert, tmp_path: Path) -> None:
    """As the shell makes of meshes/*, with splits and without, a folder or an archive."""
    write_shapes(tmp_path / "set")
    pack(tmp_path / "set" / "rod", tmp_path / "set" / "plate.zip")
    done = convert("set/cube", "set/rod", "set/plate.zip", "set.h5")
    assert done.code == 0 and "each source is a class: cube, rod, plate" in done.out
    clouds = load("set.h5")
    assert clouds.classes == ("cube", "plate", "rod") and clouds.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert clouds.names[0] == "cube/1.npy" and clouds.names[3] == "plate.zip/0.off"


def test_single_files_are_no_classes(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set")
    assert convert("set/cube/1.npy", "set/rod/0.off", "set.h5").code == 0
    clouds = load("set.h5")
    assert clouds.classes == () and clouds.names == ("0.off", "1.npy")


def test_every_format_is_converted(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    names = [name for name in EXAMPLES if not name.endswith((".txt", ".csv"))]  # beside meshes these are notes
    for name in names:
        (tmp_path / "set" / name).write_bytes(EXAMPLES[name])
    done = convert("set", "set.h5")
    assert done.code == 0 and sorted(by_name(tmp_path / "set.h5")) == sorted(names), done


def test_the_file_carries_checksums_everywhere(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set")
    (tmp_path / "set/bad.off").write_bytes(b"OFF 1")
    assert convert("set", "set.h5", "--skip-bad", "--source", "s", "--licence", "l").code == 0
    with h5py.File("set.h5") as file:
        names: list[str] = []
        file.visit(names.append)
        assert not file.attrs and {"bad_files", "train/points", "contents_sha256", "train/contents_sha256"} <= {*names}
        for name in names:
            if isinstance(file[name], h5py.Dataset):
                assert file[name].fletcher32 and file[name].dtype.kind in "fiS" and not file[name].attrs, name
    with open_hdf5("set.h5") as gate:
        assert gate.strings("bad_files") == ("bad.off",)


# Bad files


def test_bad_files_are_listed_and_nothing_is_written(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set")
    (tmp_path / "set/rod/bad.off").write_bytes(b"OFF\n1 0 0\n0 0")
    (tmp_path / "set/rod/nan.npy").write_bytes(npy(np.full((5, 3), np.nan, np.float32)))
    (tmp_path / "set/zero/empty.npy").parent.mkdir()
    (tmp_path / "set/zero/empty.npy").touch()
    done = convert("set", "set.h5")
    assert fails(
        done, 3, "set/rod/bad.off: ", "(3 of 9 files cannot be read, nothing was written): repair them, or give"
    )
    assert re.search(r"bad: rod/bad.off: .*\nbad: rod/nan.npy: row 0 is \[nan, nan, nan\].*\nbad: zero/empty", done.out)
    assert sorted(os.listdir(tmp_path)) == ["set", "set.h5.partial"]
    done = convert("set", "set.h5", "--skip-bad")
    assert done.code == 0 and "6 train clouds x 64 points, 3 classes, 3 bad files left out" in done.out, done
    assert (
        "bad: rod/nan.npy: row 0" in done.out and "classes without a cloud, which keep their places: zero" in done.out
    )
    assert load("set.h5").classes == ("cube", "rod", "zero") and len(load("set.h5")) == 6
    with open_hdf5("set.h5") as file:
        assert file.strings("bad_files") == ("rod/bad.off", "rod/nan.npy", "zero/empty.npy")
    write_shapes(tmp_path / "set")
    first = Path("set.h5").read_bytes()
    assert convert("set", "set.h5", "--skip-bad", "--overwrite").code == 0 and Path("set.h5").read_bytes() == first


def test_a_set_of_bad_files_is_none(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.off").write_bytes(b"OFF 1")
    assert fails(convert("set", "set.h5", "--skip-bad"), 3, "set.h5: not written: none of the 1 files can be read")
    assert not Path("set.h5").exists()


def test_names_do_not_steer_the_terminal(convert: Convert, tmp_path: Path) -> None:
    (write_shapes(tmp_path / "set") / "\x1b[31mred.off").write_bytes(b"")
    done = convert("set", "set.h5", "--skip-bad")
    assert done.code == 0 and "bad: ?[31mred.off: " in done.out and "\x1b" not in done.out


# Refusals


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "SRC and OUT.h5 are wanted, as in: python -m jointmae.data convert meshes/ meshes.h5"),
        (["set"], 2, "SRC and OUT.h5 are wanted"),
        (["set", "out"], 2, "the last path is what is written, and must end in .h5, got out"),
        (["set", "no/a.h5"], 74, "no/a.h5 cannot be written: there is no folder no: make it first"),
        (["set", "here.h5"], 2, "here.h5 exists already: give --overwrite to replace it, or choose another OUT"),
        (["set", "folder.h5", "--overwrite"], 2, "folder.h5 exists already: choose another OUT"),
        (["gone", "a.h5"], 3, "gone: does not exist: give the path of a folder or a .zip archive"),
        (["set", "a.h5", "--num-points", "0"], 2, "--num-points must be between 1 and 1,000,000, got 0"),
        (["set", "a.h5", "--num-points", "x"], 2, "--num-points must be an integer, got 'x'"),
        (["set", "a.h5", "--dtype", "int8"], 2, "--dtype must be float32 or float16, got int8"),
        (["set", "a.h5", "--up-axis", "up"], 2, "--up-axis must be one of +x, -x, +y, -y, +z, -z, got up"),
        (["set", "a.h5", "--test-fraction", "1"], 2, "--test-fraction must be at least 0 and below 1, got 1.0"),
        (["set", "a.h5", "--seed", "-1"], 2, "--seed must be at least 0 and below 2^63, got -1"),
        (["set", "a.h5", "--workers", "-1"], 2, "--workers must be at least 0"),
        (["set", "a.h5", "--worker", "1"], 2, "unknown option --worker. Did you mean --workers?"),
        (["set", "a.h5", "--licence", "x" * 70_000], 2, "--licence must be UTF-8 text of at most 65,536 bytes"),
        (["set", "a.h5", "--source", "\udcff"], 2, "--source must be UTF-8 text"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_writes_nothing(
    convert: Convert, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    write_shapes(tmp_path / "set")
    (tmp_path / "here.h5").write_bytes(b"old")
    (tmp_path / "folder.h5").mkdir()
    before = contents(tmp_path)
    assert fails(convert(*argv), code, said)
    assert contents(tmp_path) == before


# Going on


def test_another_plan_is_refused_with_the_differences(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shapes(tmp_path / "set", 10)
    (tmp_path / "set/bad.off").touch()
    assert convert("set", "set.h5").code == 3
    same = convert("set", "set.h5")
    assert fails(same, 3, "bad.off")
    for name in ("cube/1.npy", "rod/2.npy"):
        (tmp_path / "set" / name).unlink()
    (tmp_path / "set/rod/11.npy").write_bytes(npy(POINTS))
    (tmp_path / "set/bad.off").write_bytes(EXAMPLES["pyramid.off"])
    said = [
        "--seed: 0 there, 5 now",
        "1 files added: rod/11.npy",
        "2 files gone: cube/1.npy, rod/2.npy",
        "1 files changed",
    ]
    refused = convert("set", "set.h5", "--seed", "5")
    assert fails(refused, 2, "set.h5.partial holds an unfinished conversion of another kind", "--restart", *said)
    assert convert("set", "set.h5", "--seed", "5", "--restart").code == 0
    assert convert("set", "other.h5", "--seed", "5").code == 0
    assert Path("set.h5").read_bytes() == Path("other.h5").read_bytes()


def test_a_folder_of_others_is_not_touched(convert: Convert, tmp_path: Path) -> None:
    write_shapes(tmp_path / "set")
    (tmp_path / "set.h5.partial").mkdir()
    (tmp_path / "set.h5.partial/thesis.tex").write_text("mine")
    before = contents(tmp_path / "set.h5.partial")["thesis.tex"]
    for more in ([], ["--restart"]):
        assert fails(convert("set", "set.h5", *more), 2, "set.h5.partial holds other files (thesis.tex): move them")
    assert contents(tmp_path / "set.h5.partial")["thesis.tex"] == before


def test_two_at_once_are_refused(convert: Convert, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    write_shapes(tmp_path / "set")
    (tmp_path / "set.h5.partial").mkdir()
    handle = os.open(tmp_path / "set.h5.partial", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert fails(convert("set", "set.h5"), 2, "another process is converting into set.h5.partial: wait for it")
    os.close(handle)
    assert convert("set", "set.h5").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_work_that_goes_on(convert: Convert, tmp_path: Path, number: signal.Signals) -> None:
    write_shapes(tmp_path / "set", 120)
    code = "import sys; from jointmae import cli; from jointmae.data import convert_work; convert_work.BLOCK = 8\n"
    code += "from jointmae.data.commands.convert import main; cli.run(main)"
    argv = [sys.executable, "-c", code, "set", "set.h5", "--num-points", "64", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "set.h5.partial/journal.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number and f"stopped by {number.name}; the same command goes on" in said
    assert sorted(os.listdir(tmp_path)) == ["set", "set.h5.partial"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.search(r"going on: \d+ of 120 files are done", done)
    assert convert("set", "whole.h5").code == 0
    assert Path("set.h5").read_bytes() == Path("whole.h5").read_bytes()


# The disk


def test_nothing_is_opened_for_writing_beside_out(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess]
) -> None:
    write_shapes(tmp_path / "set")
    pack(tmp_path / "set", tmp_path / "set.zip")
    code = f"""
import os, sys
from jointmae.data.commands.convert import main
touched = set()
def note(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        touched.add(os.fsdecode(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.copyfile"):
        touched.update(os.fsdecode(arg) for arg in args if isinstance(arg, (str, bytes)))
sys.addaudithook(note)
out = {str(tmp_path / "set.h5")!r}
assert main([{str(tmp_path / "set.zip")!r}, out, "--num-points", "64"]) == 0
beside = [name for name in touched if not name.startswith(out) and name != os.devnull]
assert touched and not beside, beside
assert "torch" not in sys.modules
"""
    done = run_python(code, TMPDIR=str(tmp_path / "gone"))
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["set", "set.h5", "set.zip"]


@pytest.mark.parametrize(
    ("limit", "file"), [(600, "set.h5.partial/plan"), (3000, "set.h5.partial/000000.points"), (8000, "set.h5: ")]
)
def test_a_full_disk_is_named_and_the_work_goes_on(
    convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, file: str
) -> None:
    """No file may be larger than `limit`: as a full disk, at the plan, at a block, at the set itself."""
    monkeypatch.setattr(convert_work, "BLOCK", 4 if limit == 3000 else 2)
    write_shapes(tmp_path / "set", 12)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        full = convert("set", "set.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fails(full, 74, f"cannot write {file}", "File too large. Make room")
    assert sorted(os.listdir(tmp_path)) == ["set", "set.h5.partial"]
    assert convert("set", "set.h5").code == convert("set", "whole.h5").code == 0
    assert Path("set.h5").read_bytes() == Path("whole.h5").read_bytes()
