"""The folder of one training run: what is in it, whose it is, and how it is continued.

config.json      what is trained               metrics.jsonl    losses by step
env.json         on which machine              timings.jsonl    speed and memory by step
status.json      for people and schedulers     checkpoints/     the newest two and the best
non_finite.json  the batch that ended a run by a number that is NaN or infinite
tensorboard/     event files, with --tensorboard
model.safetensors                              at the end
evaluation.json, report.html, README.md        at the end of pre-training, but with --no-evaluate
result.json                                    at the end of any other run, but with --no-evaluate

On a CPU every byte of metrics.jsonl and model.safetensors is decided by
- what is trained: the data, and all options but those of RESUMABLE_CHANGES (jointmae/config.py);
- how sums are split up: the number of processes, of parts (--accumulate; with --auto-batch, as memory asks for) and of
  threads, --parallel and --compile;
- where: the processor's instruction set, and the versions in env.json.
Stops and restarts, --out, --evaluate and --tensorboard change no byte. Where only the second or the third differs,
numbers differ by rounding, which grows with the steps (docs/scaling.md); parts with batch norm are the exception.
On a GPU this holds as far as PyTorch's own kernels are deterministic, and by default not all of them are.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from jointmae import __version__
from jointmae.build_info import ROOT
from jointmae.config import RESUMABLE_CHANGES, RunConfig, to_dict
from jointmae.errors import CheckpointError, UsageError
from jointmae.files import disk_errors, lock_folder, make_folder, sync_folder, to_json, write_atomically

_MAY_GROW = ("epochs", "max_steps")


def runs_folder(what: str, config: RunConfig) -> Path:
    """runs/<what>-<data>-<seed>."""
    return Path("runs") / f"{what}-{data_name(config)}-{config.seed}"


def data_name(config: RunConfig) -> str:
    """The names of --data, without folders and endings."""
    return "+".join(Path(os.path.abspath(name)).stem.replace(":", "-") for name in config.data)


class RunFolder:
    """The folder of a run, new or to be continued, and its files. Nothing is written before `claim`."""

    def __init__(self, path: Path, config: RunConfig, inputs: dict[str, Any]) -> None:
        """`inputs` are sums of what is read, and the like.

        Raises UsageError if the folder holds another run or other files.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._files: dict[str, IO[str]] = {}
        self._lock: int | None = None
        self._config = json.loads(json.dumps({**to_dict(config), **inputs}))
        with disk_errors(path):
            entries = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        if "config.json" in entries:
            _require_same_run(path, _read_json(path / "config.json"), self._config)
        elif strangers := [name for name in entries if not name.endswith(".tmp")]:
            found = ", ".join(strangers[:3])
            raise UsageError(f"--out {path} is not empty and holds no run (found {found}). Choose another folder.")

    def claim(self) -> None:
        """Makes the folder and takes it for this process; what is in it stays as it is.

        Raises DiskError if it cannot be written, UsageError if another process trains in it.
        """
        make_folder(self.path)
        busy = f"another process is training in {self.path}: wait for it, or choose another --out"
        self._lock = lock_folder(self.path, busy)

    def begin(self) -> None:
        """Writes what is run, and where: once it is known that the run can go on."""
        stale = self.path / "non_finite.json"  # of the attempt before
        with disk_errors(stale):
            stale.unlink(missing_ok=True)
        write_atomically(self.path / "config.json", to_json(self._config))
        write_atomically(self.path / "env.json", to_json(environment()))

    def status(self) -> dict[str, Any]:
        """What status.json says; empty before the first, and where it cannot be read."""
        try:
            return _read_json(self.path / "status.json")
        except CheckpointError:
            return {}

    def is_finished(self, num_steps: int, evaluated: bool) -> bool:
        """Whether a run of so many steps is done here, and evaluated if it should be."""
        status = self.status()
        done = status.get("state") == "finished" and status.get("step") == num_steps
        return done and (bool(status.get("evaluated")) or not evaluated) and (self.path / "model.safetensors").exists()

    def write_status(self, state: str, **more: Any) -> None:
        """`state` is running, stopped, failed or finished; `more` is step, checkpoint, exit_code and the like.

        With it, by whom and when: "running" that is minutes old has no one behind it.
        """
        written = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        who = {"host": platform.node(), "process": os.getpid(), "written": written}
        write_atomically(self.path / "status.json", to_json({"state": state, **more, **who}))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Adds one JSON line to `name`.jsonl."""
        file = self.path / f"{name}.jsonl"
        line = json.dumps(record, allow_nan=False) + "\n"
        with disk_errors(file, len(line)):
            if name not in self._files:
                self._files[name] = file.open("a", encoding="utf-8")
            self._files[name].write(line)
            self._files[name].flush()

    def sync(self) -> None:
        """Makes the lines written so far durable: a checkpoint must not be ahead of them."""
        with disk_errors(self.path):
            for file in self._files.values():
                os.fsync(file.fileno())
            sync_folder(self.path)

    def cut_after(self, step: int) -> None:
        """Drops lines past `step`, and what a crash left that is no line."""
        for name in ("metrics", "timings"):
            file = self.path / f"{name}.jsonl"
            if file.exists():
                write_atomically(file, b"".join(_lines_until(file.read_bytes(), step)))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def close(self) -> None:
        """Closes the files and lets go of the folder."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk has been reported by `append`; `sync` decides what counts
                file.close()
        self._files.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lines_until(content: bytes, step: int) -> Iterator[bytes]:
    """The leading lines of a .jsonl file that are whole and not past `step`."""
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                return
        except (ValueError, KeyError, TypeError):  # a power cut can leave zeros behind what was made durable
            return
        yield line


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error}). Choose another --out, or remove the folder."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds no JSON object. Choose another --out, or remove the folder.")
    return value


def _require_same_run(path: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises UsageError listing where two configs differ, but for what a continuation may change."""
    differences = []
    flat_mine, flat_theirs = _flat(mine), _flat(theirs)
    if _same_files(flat_mine, flat_theirs):
        flat_mine["data"] = flat_theirs["data"]
    if "checkpoint" in flat_mine and flat_mine["checkpoint_sha256"] == flat_theirs.get("checkpoint_sha256"):
        flat_mine["checkpoint"] = flat_theirs.get("checkpoint")
    for name in sorted(set(flat_mine) | set(flat_theirs)):
        new, old = flat_mine.get(name), flat_theirs.get(name)
        if new == old or name in RESUMABLE_CHANGES or (name in _MAY_GROW and _grew(name, old, new)):
            continue
        differences.append(f"{name}: {old} there, {new} now")
    if differences:
        shown = "\n  ".join(differences[:3])
        more = f"\n  and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UsageError(
            f"{path} holds a run of another config; choose another --out, or the same options.\n  {shown}{more}"
        )


def _same_files(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether the data are the same though their paths may not be: a set that was moved is no other set."""
    counts = [len(config["data"]) if isinstance(config.get("data"), list) else -1 for config in (mine, theirs)]
    return mine.get("data_sha256") == theirs.get("data_sha256") and counts[0] == counts[1] >= 0


def _grew(name: str, old: Any, new: Any) -> bool:
    if not isinstance(old, int) or not isinstance(new, int):
        return False
    endless = math.inf if name == "max_steps" else 0  # --max-steps 0 is no limit
    return (new or endless) > (old or endless)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    model = values.get("model")
    flat_model = {f"model.{name}": value for name, value in model.items()} if isinstance(model, dict) else {}
    return {**{name: value for name, value in values.items() if name != "model"}, **flat_model}


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
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def commit() -> str | None:
    """The commit of the checkout that runs, "-dirty" with changes; None for an installed package."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
