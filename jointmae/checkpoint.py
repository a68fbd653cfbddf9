"""Checkpoints: a folder of safetensors and JSON, complete or absent, verified before it is believed.

    step-1200/  model.safetensors  optimizer.safetensors  state.json  manifest.json (sha256 of the others)

Written to `step-1200.tmp`, synced, renamed. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from jointmae.errors import CheckpointError
from jointmae.files import disk_errors, sync_folder, to_json, write_atomically

Tensors = dict[str, Tensor]
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped; there is no generator state (jointmae.random)."""

    step: int
    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]  # plain JSON: sums that the metrics still need, the best so far


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `folder/step-N`; a crash at any moment leaves it whole or absent. Raises DiskError with the path."""
    final = folder / f"step-{checkpoint.step}"
    temporary = folder / f"step-{checkpoint.step}.tmp"
    contents = {
        "model.safetensors": safetensors.torch.save(checkpoint.model),
        "optimizer.safetensors": safetensors.torch.save(checkpoint.optimizer),
        "state.json": to_json({"step": checkpoint.step, **checkpoint.state}).encode(),
    }
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    with disk_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in contents.items():
            write_atomically(temporary / name, data)
        write_atomically(temporary / "manifest.json", to_json(manifest))
        if final.exists():  # the same step again, after a resume from an older one: the same bytes
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync_folder(folder)
    return final


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path` (a step-N folder), every file verified. Raises CheckpointError naming the bad file."""
    data = _verified_files(path)
    state = json.loads(data["state.json"])
    step = state.pop("step")
    return Checkpoint(
        step, safetensors.torch.load(data["model.safetensors"]), safetensors.torch.load(data["optimizer.safetensors"]), state
    )


def _verified_files(path: Path) -> dict[str, bytes]:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        data = {name: (path / name).read_bytes() for name in _FILES}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint ({error})") from error
    for name, content in data.items():
        if not isinstance(manifest, dict) or manifest.get(name) != hashlib.sha256(content).hexdigest():
            raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not the one in manifest.json)")
    return data


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint in `folder`, newest first."""
    if not folder.is_dir():
        return []
    names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in folder.iterdir())
    return sorted((int(name[1]) for name in names if name), reverse=True)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint (None if there is none), and what was wrong with newer ones."""
    complaints: list[str] = []
    for step in steps(folder):
        try:
            return load(folder / f"step-{step}"), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def rotate(folder: Path, keep: set[int], newest: int = 2) -> None:
    """Deletes all but the newest checkpoints and those in `keep`, and what crashes left half written."""
    if not folder.is_dir():
        return
    wanted = set(steps(folder)[:newest]) | keep
    with disk_errors(folder):
        for step in set(steps(folder)) - wanted:
            doomed = folder / f"step-{step}.tmp"  # a half-deleted folder must not pass for a checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(folder / f"step-{step}", doomed)
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
