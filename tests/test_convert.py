"""Meshes and clouds become one .h5 file: the same bytes however often it was stopped, and no change goes unnoticed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from jointmae.data import load, splits_of
from jointmae.data.commands.convert import main
from jointmae.errors import DataError, DiskError, UsageError
from tests.shape_files import EXAMPLES

# Small blocks, so that a kill falls between some that are finished and others that are not.
COMMAND = """
import sys
import jointmae.data.convert_work as work
work.BLOCK = 2
from jointmae import cli
from jointmae.data.commands.convert import main
cli.run(main)
"""


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """Two splits of two classes: 6 clouds of 64 points, 6 pyramids."""
    for split in ("train", "test"):
        for i in range(3):
            points = np.random.default_rng(i).normal(size=(64, 3)).astype(np.float32)
            for label, name, data in (("ball", f"{i}.npy", None), ("pyramid", f"{i}.off", EXAMPLES["pyramid.off"])):
                path = tmp_path / "meshes" / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, points) if data is None else path.write_bytes(data)
    return tmp_path / "meshes"


def convert(meshes: Path, out: Path, *options: str) -> bytes:
    assert main([str(meshes), str(out), "--num-points", "64", *options]) == 0
    return out.read_bytes()


def test_what_is_converted_is_read_again(meshes: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.h5"
    convert(meshes, out, "--up-axis=+z", "--source", "here", "--licence", "CC0")
    assert splits_of(out) == ("train", "test") and not (tmp_path / "set.h5.partial").exists()
    clouds = load(out, ("test",))
    assert clouds.classes == ("ball", "pyramid") and clouds.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert clouds.points.shape == (6, 64, 3) and clouds.names[0] == "test/ball/0.npy"
    assert (clouds.source, clouds.licence) == ("here", "CC0") and clouds.up[0].tolist() == [0, 0, 1]
    direct = load(meshes, ("test",))  # the same clouds without the way through a file
    rows = {tuple(row) for row in np.round(direct.points[0].numpy(), 5).tolist()}
    assert {tuple(row) for row in np.round(clouds.points[0].numpy(), 5).tolist()} == rows
    norms = clouds.points.norm(dim=-1).amax(dim=1)
    assert float((norms - 1).abs().max()) < 1e-5


def test_every_dataset_has_a_checksum(meshes: Path, tmp_path: Path) -> None:
    convert(meshes, tmp_path / "set.h5")
    with h5py.File(tmp_path / "set.h5") as file:
        datasets: list[h5py.Dataset] = []
        file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(datasets) > 6 and all(dataset.fletcher32 for dataset in datasets)
        assert not any(dataset.dtype.kind == "O" for dataset in datasets) and not file.attrs


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(meshes: Path, tmp_path: Path) -> None:
    one = convert(meshes, tmp_path / "1.h5", "--workers", "1")
    assert convert(meshes, tmp_path / "2.h5", "--workers", "2") == one
    assert convert(meshes, tmp_path / "3.h5", "--seed", "1") != one


def test_killed_and_run_again_it_ends_in_the_same_bytes(meshes: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / "killed.h5", [str(meshes), str(tmp_path / "killed.h5"), "--num-points", "64"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMMAND, *argv, "--workers", "1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    journal, deadline = tmp_path / "killed.h5.partial" / "journal.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 1:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    killed = process.returncode == -signal.SIGKILL
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    if killed:  # else it was done before the signal came
        assert again.returncode == 0 and "going on: " in again.stdout, again
    assert out.read_bytes() == convert(meshes, tmp_path / "whole.h5") and not journal.parent.exists()


def test_another_conversion_in_its_place_is_refused(meshes: Path, tmp_path: Path) -> None:
    (meshes / "train" / "ball" / "0.npy").write_bytes(b"broken")
    with pytest.raises(DataError):
        convert(meshes, tmp_path / "set.h5")
    with pytest.raises(UsageError, match=r"(?s)give --restart to begin again.*--seed: 0 there, 5 now"):
        convert(meshes, tmp_path / "set.h5", "--seed", "5")
    convert(meshes, tmp_path / "set.h5", "--seed", "5", "--restart", "--skip-bad")


def test_bad_files_are_listed_and_left_out_on_demand(
    meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (meshes / "train" / "ball" / "1.npy").write_bytes(b"\x93NUMPY")
    (meshes / "train" / "pyramid" / "2.off").write_text("OFF\n9999999999 1 0\n")
    with pytest.raises(DataError, match=r"2 of 12 files cannot be read, nothing was written\): repair them, or give"):
        convert(meshes, tmp_path / "set.h5")
    out = capsys.readouterr().out
    assert "bad: train/ball/1.npy: " in out and "bad: train/pyramid/2.off: " in out
    assert not (tmp_path / "set.h5").exists()
    convert(meshes, tmp_path / "set.h5", "--skip-bad")
    assert "2 bad files left out" in capsys.readouterr().out
    assert len(load(tmp_path / "set.h5")) == 4


def test_a_test_split_by_name(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(40):
        np.save(tmp_path / "flat" / f"{i}.npy", np.random.default_rng(i).normal(size=(8, 3)))
    convert(tmp_path / "flat", tmp_path / "set.h5", "--test-fraction", "0.3")
    train, test = load(tmp_path / "set.h5"), load(tmp_path / "set.h5", ("test",))
    assert len(train) + len(test) == 40 and 4 <= len(test) <= 20 and not set(train.names) & set(test.names)


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["{m}"], UsageError, "SRC and OUT.h5 are wanted"),
        (["{m}", "{t}/out.npy"], UsageError, "must end in .h5"),
        (["{m}", "{t}/none/out.h5"], DiskError, "there is no folder"),
        (["{t}/nowhere", "{t}/out.h5"], DataError, "does not exist"),
        (["{m}", "{t}/there.h5"], UsageError, "exists already: give --overwrite"),
        (["{m}", "{t}/out.h5", "--num-points", "0"], UsageError, "--num-points must be between 1"),
        (["{m}", "{t}/out.h5", "--dtype", "int8"], UsageError, "--dtype must be float32 or float16"),
        (["{m}", "{t}/out.h5", "--test-fraction", "0.5"], UsageError, "--test-fraction is for sources without splits"),
    ],
)
def test_mistakes_are_answered(
    meshes: Path, tmp_path: Path, argv: list[str], error: type[Exception], message: str
) -> None:
    (tmp_path / "there.h5").touch()
    with pytest.raises(error, match=message):
        main([part.format(m=meshes, t=tmp_path) for part in argv])
    assert not (tmp_path / "out.h5").exists()


def test_a_full_disk_is_said(meshes: Path, tmp_path: Path, run_python) -> None:
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from jointmae import cli
from jointmae.data.commands.convert import main
sys.argv = ["convert", {str(meshes)!r}, {str(tmp_path / "set.h5")!r}, "--num-points", "64"]
cli.run(main)
"""
    run = run_python(code)
    assert run.returncode == 74 and "cannot write" in run.stderr, run
    assert not (tmp_path / "set.h5").exists() and (meshes / "train").is_dir()
