"""Small sets and small runs, for the tests of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from jointmae import cli
from jointmae.config import TrainConfig
from jointmae.train import parse_args

# The model of models.micro_config; 6 steps an epoch on 24 clouds.
SMALL = (
    "--num-points 256 --num-centers 64 16 --num-neighbors 8 4 --num-target-neighbors 8 --embed-dims 8 16 24 "
    "--image-size 64 --num-layers 2 --num-heads 2 --num-decoder-layers 1 --batch-size 4 --epochs 2 --warmup-epochs 1 "
    "--device cpu --no-evaluate"
).split()


def write_clouds(
    path: Path, train: int = 24, test: int = 0, labels: bool = False, num_points: int = 256, parts: bool = False
) -> Path:
    """An .h5 file of boxes of three shapes; with labels, their shape; with parts, the half that a point is in.

    Cubes have halves, left and right; a rod is all left, a plate has a rim as a third part.
    """
    generator = np.random.default_rng(0)
    stretches = np.array([[1, 1, 1], [1, 0.3, 0.3], [1, 1, 0.1]])
    with h5py.File(path, "w") as file:
        for split, count in (("train", train), ("test", test)):
            if count == 0:
                continue
            kinds = np.arange(count) % 3
            points = generator.uniform(-1, 1, (count, num_points, 3)) * stretches[kinds][:, None]
            file[f"{split}/points"] = points.astype(np.float32)
            if labels:
                file[f"{split}/label"] = kinds
            if parts:
                right = points[..., 0] > 0
                rim = np.abs(points[..., :2]).max(-1) > 0.8
                file[f"{split}/part"] = np.select([kinds[:, None] == 1, kinds[:, None] == 0], [0, right], 2 * rim)
        if parts:
            file.attrs["part_names"] = ["left", "right", "rim"]
        if labels:
            file.attrs["classes"] = ["cube", "rod", "plate"]
    return path


def small_argv(folder: Path, *more: str) -> list[str]:
    """A run of 12 steps on `folder`/clouds.h5 in `folder`/run."""
    data = folder / "clouds.h5"
    if not data.exists():
        write_clouds(data)
    return [*SMALL, "--data", str(data), "--out", str(folder / "run"), *more]


def small_config(folder: Path, *more: str) -> TrainConfig:
    return parse_args(small_argv(folder, *more))


class Outcome(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str], monkeypatch, capfd) -> Outcome:
    """The command in this process, as `python -m` would run it."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    capfd.readouterr()
    try:
        cli.run(main)
    except SystemExit as stop:
        return Outcome(int(stop.code or 0), *capfd.readouterr())
    raise AssertionError("cli.run returned")


def fails(outcome: Outcome, code: int, *said: str) -> bool:
    """Whether it failed with `code`, and a message of at most 6 lines and no traceback that has all of `said`."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ") and len(outcome.err.splitlines()) <= 6, outcome.err
    assert "Traceback" not in outcome.err and all(text in outcome.err for text in said), outcome.err
    return True


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below `folder` with its bytes and time of change; of folders, the time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted([folder, *folder.rglob("*")])
    }


def results(folder: Path) -> tuple[bytes, bytes]:
    """The two files of which `jointmae.run_folder` says what decides every byte."""
    return (folder / "metrics.jsonl").read_bytes(), (folder / "model.safetensors").read_bytes()
