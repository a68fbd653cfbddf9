"""A disk that is full, broken or read-only, and a crash, at each call that changes a file; and a disk that is small."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jointmae import checkpoint
from tests.conftest import ROOT
from tests.runs import small_argv

FAULTS = ["kill", "ENOSPC", "EIO", "EROFS"]


def faulty_disk(interpose: Path, *arguments: object) -> None:
    """Runs faulty_disk.py, which says why it is that way."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.faulty_disk", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(interpose), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip())


@pytest.mark.parametrize("fault", FAULTS)
def test_in_each_call_of_a_save(interpose, tmp_path, fault):
    faulty_disk(interpose, tmp_path, "save", fault, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_calls_of_a_run(interpose, tmp_path, fault, release):
    """In three of them, in all with --release."""
    faulty_disk(interpose, tmp_path, "train", fault, 1 if release else 120)


def test_a_disk_of_two_megabytes(tmp_path):
    """Two checkpoints of 0.7 MB fit and a third does not: exit code 74, and the newest one is whole."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    argv = small_argv(tmp_path, "--epochs", "6")
    argv[argv.index("--out") + 1] = str(disk / "run")
    script = 'mount -t tmpfs -o size=2m none "$1" || exit 99; disk=$1 kept=$2; shift 2; "$@"; code=$?; '
    script += 'cp -r "$disk/run" "$kept"; exit $code'
    own_mounts = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(disk), str(kept)]
    mounts = "unshare --map-root-user --mount mount -t tmpfs -o size=2m none".split()
    if shutil.which("unshare") is None or subprocess.run([*mounts, str(disk)], check=False).returncode != 0:
        pytest.skip("needs a system that lets its users mount a small disk")
    done = subprocess.run(
        [*own_mounts, sys.executable, "-m", "jointmae.train", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 74, (done.stdout, done.stderr)
    assert f"cannot write {disk}/run/checkpoints/step-" in done.stderr and "No space left on device" in done.stderr
    assert " bytes; " in done.stderr and " free)" in done.stderr
    found, complaints = checkpoint.load_newest(kept / "checkpoints")
    assert found is not None and found.step > 0 and complaints == []
