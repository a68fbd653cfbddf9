"""The folder of one training run: what is in it, whose it is, and how it is continued.

    config.json      what is trained               metrics.jsonl    losses by step: config, data and seed decide every byte
    env.json         on which machine              timings.jsonl    speed and memory by step
    status.json      for people and schedulers     checkpoints/     the newest two and the best
    model.safetensors, report.html, README.md      at the end
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from jointmae import __version__
from jointmae.config import RESUMABLE_CHANGES, TrainConfig, to_dict
from jointmae.errors import CheckpointError, UsageError
from jointmae.files import disk_errors, make_folder, to_json, write_atomically

_MAY_GROW = ("epochs", "max_steps")


def default_folder(config: TrainConfig) -> Path:
    """runs/<preset>-<data>-<seed>, with the recipe where it is not the default one."""
    data = "+".join(Path(name).stem for name in config.data)
    preset = config.preset if config.recipe == "best" else f"{config.preset}-{config.recipe}"
    return Path("runs") / f"{preset}-{data}-{config.seed}"


class RunFolder:
    """Opens the folder of a run, new or to be continued, and writes its files."""

    def __init__(self, path: Path, config: TrainConfig, data_sha256: str) -> None:
        """Raises UsageError if the folder holds another run, DiskError if it cannot be written."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._files: dict[str, IO[str]] = {}
        self._config = {**to_dict(config), "data_sha256": data_sha256}
        make_folder(path)
        if (path / "config.json").exists():
            _require_same_run(path, _read_json(path / "config.json"), self._config)
        elif strangers := sorted(entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")):
            found = ", ".join(strangers[:3])
            raise UsageError(f"--out {path} is not empty and holds no run (found {found}). Choose another folder.")

    def begin(self) -> None:
        """Writes what is run, and where."""
        write_atomically(self.path / "config.json", to_json(self._config))
        write_atomically(self.path / "env.json", to_json(environment()))

    def status(self) -> dict[str, Any]:
        """What status.json says; empty before the first checkpoint."""
        file = self.path / "status.json"
        return _read_json(file) if file.exists() else {}

    def write_status(self, state: str, step: int, **more: Any) -> None:
        """`state` is running, stopped, failed or finished."""
        write_atomically(self.path / "status.json", to_json({"state": state, "step": step, **more}))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Adds one JSON line to `name`.jsonl."""
        file = self.path / f"{name}.jsonl"
        with disk_errors(file):
            if name not in self._files:
                self._files[name] = file.open("a", encoding="utf-8")
            self._files[name].write(json.dumps(record, allow_nan=False) + "\n")
            self._files[name].flush()

    def sync(self) -> None:
        """Makes the lines written so far durable: a checkpoint must not be ahead of them."""
        for name, file in self._files.items():
            with disk_errors(self.path / f"{name}.jsonl"):
                os.fsync(file.fileno())

    def cut_after(self, step: int) -> None:
        """Drops lines past `step`, and a last line that a crash left unfinished."""
        for name in ("metrics", "timings"):
            file = self.path / f"{name}.jsonl"
            if file.exists():
                kept = [line for line in file.read_text("utf-8").split("\n")[:-1] if json.loads(line)["step"] <= step]
                write_atomically(file, "".join(line + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}). Choose another --out, or remove the folder.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds no JSON object. Choose another --out, or remove the folder.")
    return value


def _require_same_run(path: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises UsageError listing the fields in which two configs differ, but for those that a continuation may change."""
    differences = []
    flat_mine, flat_theirs = _flat(mine), _flat(theirs)
    for name in sorted(set(flat_mine) | set(flat_theirs)):
        new, old = flat_mine.get(name), flat_theirs.get(name)
        if new == old or name in RESUMABLE_CHANGES or (name in _MAY_GROW and _grew(name, old, new)):
            continue
        differences.append(f"{name}: {old} there, {new} now")
    if differences:
        shown = "\n  ".join(differences[:3])
        more = f"\n  and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UsageError(f"{path} holds a run of another config; choose another --out, or the same options.\n  {shown}{more}")


def _grew(name: str, old: Any, new: Any) -> bool:
    endless = name == "max_steps" and new == 0
    return isinstance(old, int) and isinstance(new, int) and (new > old or endless)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in values.items() if k != "model"}, **{f"model.{k}": v for k, v in values["model"].items()}}


def environment() -> dict[str, Any]:
    """Machine, versions, command and time: what config.json must not depend on."""
    packages = {}
    for name in ("torch", "numpy", "h5py", "scikit-learn", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed as a package"
    return {
        "jointmae": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
