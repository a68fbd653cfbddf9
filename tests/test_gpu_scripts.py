"""What scripts/gpu.sh and gpu_pack.sh are made of, as far as it can be tried without a GPU and a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from jointmae.data import load
from tests.conftest import ROOT


@pytest.fixture
def source(tmp_path):
    """40 clouds of four classes, sorted by class, as some files are."""
    file = tmp_path / "source" / "clouds.h5"
    file.parent.mkdir()
    generator = np.random.default_rng(0)
    with h5py.File(file, "w") as h5:
        h5.attrs["classes"] = ["a", "b", "c", "d"]
        for split in ("train", "test"):
            h5[f"{split}/points"] = generator.normal(size=(40, 2048, 3)).astype("float16")
            h5[f"{split}/label"] = np.repeat(np.arange(4, dtype="int16"), 10)
            h5[f"{split}/part"] = generator.integers(0, 99, (40, 2048), dtype="uint8")
    return file


def _pack(source, target, max_bytes: int) -> subprocess.CompletedProcess[str]:
    target.mkdir()
    command = [sys.executable, ROOT / "scripts" / "pack_data.py", "--max-bytes", str(max_bytes), target, source.parent]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_packed_data_fits_and_loads(source, tmp_path):
    assert _pack(source, tmp_path / "packed", 300_000).returncode == 0
    packed = tmp_path / "packed" / "clouds.h5"
    assert 200_000 < packed.stat().st_size <= 300_000
    clouds = load(str(packed), ("train",))
    counts = np.bincount(clouds.labels)
    assert len(counts) == 4 and counts.min() >= counts.max() - 1  # every class keeps its share


def test_data_that_cannot_fit_is_an_error(source, tmp_path):
    done = _pack(source, tmp_path / "packed", 1000)
    assert done.returncode == 1 and done.stderr == "pack_data: nothing fits into 1000 bytes\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    command = ["bash", ROOT / "scripts" / "gpu.sh", "--stage", "tests,flying", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and done.stderr.startswith("gpu.sh: no stage flying; there are tests,sanitize,")


def test_speed_is_read_from_the_lines_after_the_warm_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import train_runs

    assert train_runs.timings(tmp_path) is None
    lines = [(10, 9.0, 1, 0.1), (30, 1.0, 100, 3), (40, 1.0, 120, 2), (50, 8.0, 20, 2)]  # the last with a checkpoint
    keys = ("step", "seconds", "clouds_per_second", "memory")
    records = [json.dumps(dict(zip(keys, line, strict=True))) + "\n" for line in lines]
    (tmp_path / "timings.jsonl").write_text("".join(records))
    expected = {"clouds_per_second": 100, "mean_clouds_per_second": 38, "memory_bytes": 3}
    assert train_runs.timings(tmp_path) == expected


def test_what_the_sanitizer_watches_runs():
    command = [sys.executable, ROOT / "scripts" / "sanitize_cases.py", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 16
