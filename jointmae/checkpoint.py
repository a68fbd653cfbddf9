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
from safetensors import SafetensorError
from torch import Tensor

from jointmae.errors import CheckpointError, DiskError
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
        try:
            temporary.mkdir(parents=True)
            for name, data in contents.items():
                write_atomically(temporary / name, data)
            write_atomically(temporary / "manifest.json", to_json(manifest))
            _discard(final)
            os.rename(temporary, final)
            sync_folder(folder)
        except (OSError, DiskError):
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def _discard(path: Path) -> None:
    """Deletes a checkpoint, if there is one; at no moment does half of it pass for one."""
    doomed = path.with_name(path.name + ".old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.exists():
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path` (a step-N folder), every file verified.

    Raises CheckpointError naming the bad file, DiskError if the system refuses to read one.
    """
    data = _verified_files(path)
    try:
        model, optimizer = (safetensors.torch.load(data[name]) for name in _FILES[:2])
        state = json.loads(data["state.json"])
        return Checkpoint(int(state.pop("step")), model, optimizer, state)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: written by another program or version ({error})") from error


def _verified_files(path: Path) -> dict[str, bytes]:
    try:
        written = (path / "manifest.json").read_bytes()
        data = {name: (path / name).read_bytes() for name in _FILES}
        manifest = json.loads(written)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{path}: not a complete checkpoint, wanted a step-N folder ({error})") from error
    except OSError as error:  # it may be whole: nothing is to be deleted for that
        raise DiskError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path / 'manifest.json'}: damaged ({error})") from error
    for name, content in data.items():
        if not isinstance(manifest, dict) or manifest.get(name) != hashlib.sha256(content).hexdigest():
            raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not the one in manifest.json)")
    if written != to_json({name: manifest[name] for name in _FILES}).encode():  # something else is in it, or missing
        raise CheckpointError(f"{path / 'manifest.json'}: damaged, or written by another version")
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
    wanted = set(steps(folder)[:newest]) | keep
    with disk_errors(folder):
        for step in set(steps(folder)) - wanted:
            _discard(folder / f"step-{step}")
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def discard_after(folder: Path, step: int) -> None:
    """Deletes checkpoints past `step`: damaged ones, or those of a future that a run has gone back from."""
    with disk_errors(folder):
        for later in steps(folder):
            if later > step:
                _discard(folder / f"step-{later}")
