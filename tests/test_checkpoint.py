"""Checkpoints: whole or absent after a crash at any moment, verified before they are believed, never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import jointmae
from jointmae import checkpoint
from jointmae.checkpoint import Checkpoint
from jointmae.errors import CheckpointError, DiskError
from jointmae.files import to_json, write_atomically

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def example(step: int) -> Checkpoint:
    weights = torch.arange(6.0).reshape(2, 3) + step
    count = torch.tensor(step, dtype=torch.int64)
    state = {"window": [[0.1, step / 3]], "best": {}}
    return Checkpoint(step, {"weights": weights, "count": count}, {"weights/step": torch.tensor(float(step))}, state)


def same(found: Checkpoint | None, expected: Checkpoint) -> bool:
    assert found is not None
    for mine, theirs in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert all(mine[name].dtype == theirs[name].dtype for name in mine)
    assert (found.step, found.state) == (expected.step, expected.state)
    return True


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    folder = tmp_path / "checkpoints"  # made by the first save
    path = checkpoint.save(folder, example(7))
    assert path == folder / "step-7" and names(path) == sorted(FILES)
    assert same(checkpoint.load(path), example(7))
    assert checkpoint.steps(folder) == [7]


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    first, second = (checkpoint.save(tmp_path / name, example(7)) for name in "ab")
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in FILES)


def test_no_checkpoint(tmp_path):
    assert checkpoint.load_newest(tmp_path / "none") == (None, [])
    assert checkpoint.steps(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"none.*wanted a step-N folder"):
        checkpoint.load(tmp_path / "none")


@pytest.mark.parametrize("damage", ["flip a bit", "cut short", "empty", "remove"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_an_older_checkpoint_taken(tmp_path, name, damage):
    checkpoint.save(tmp_path, example(1))
    file = checkpoint.save(tmp_path, example(2)) / name
    data = file.read_bytes()
    middle = len(data) // 2
    if damage == "remove":
        file.unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"flip a bit": flipped, "cut short": data[:-1], "empty": b""}[damage])
    found, (complaint,) = checkpoint.load_newest(tmp_path)
    assert same(found, example(1))
    assert "step-2" in complaint and (name in complaint or name == "manifest.json")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "step-2")


def test_nothing_valid_is_left(tmp_path):
    for step in (1, 2):
        (checkpoint.save(tmp_path, example(step)) / "state.json").write_text("{}")
    found, complaints = checkpoint.load_newest(tmp_path)
    assert found is None and len(complaints) == 2


@pytest.mark.parametrize("manifest", ["[]", "1", "null", '"text"', '{"model.safetensors": 3}', "\x00\x01", "{" * 10])
def test_a_manifest_of_any_kind(tmp_path, manifest):
    (checkpoint.save(tmp_path, example(1)) / "manifest.json").write_text(manifest)
    assert checkpoint.load_newest(tmp_path)[0] is None


def test_a_true_manifest_of_foreign_files(tmp_path):
    """Files that agree with their manifest and still are no checkpoint of ours."""
    path = checkpoint.save(tmp_path, example(1))
    for name, content in (("state.json", b"[1]"), ("state.json", b"{}"), ("model.safetensors", b"\xff" * 40)):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        (copy / name).write_bytes(content)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(to_json({**manifest, name: hashlib.sha256(content).hexdigest()}))
        with pytest.raises(CheckpointError, match="another program or version"):
            checkpoint.load(copy)


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 10):
        checkpoint.save(tmp_path, example(step))
    (tmp_path / "step-11.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    checkpoint.rotate(tmp_path, keep={2})
    assert checkpoint.steps(tmp_path) == [10, 4, 2]
    assert names(tmp_path) == ["notes", "step-10", "step-2", "step-4"]
    checkpoint.rotate(tmp_path, keep=set(), newest=1)
    assert checkpoint.steps(tmp_path) == [10]


def test_checkpoints_past_a_step_are_discarded(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, example(step))
    checkpoint.discard_after(tmp_path, 2)
    assert names(tmp_path) == ["step-1", "step-2"]


class Crash(BaseException):
    """The machine stops here."""


class FileSystem:
    """Counts the calls that change the disk, and stops the machine before, or instead of, one of them."""

    CALLS = (
        (os, "rename"),
        (os, "replace"),
        (os, "fsync"),
        (os, "open"),
        (Path, "mkdir"),
        (Path, "open"),
        (shutil, "rmtree"),
        (os, "unlink"),
    )

    def __init__(self, monkeypatch, error: BaseException | None = None, at: int = 0) -> None:
        self.count, self.at, self.error = 0, at, error
        for owner, name in self.CALLS:
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function):
        def call(*arguments, **options):
            self.count += 1
            if self.error is not None and self.count == self.at:
                raise self.error
            return function(*arguments, **options)

        return call


def save_and_rotate(folder: Path, step: int) -> None:
    checkpoint.save(folder, example(step))
    checkpoint.rotate(folder, keep={1})


def calls_of(folder: Path, step: int) -> int:
    with pytest.MonkeyPatch.context() as patch:
        counter = FileSystem(patch)
        save_and_rotate(folder, step)
    return counter.count


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "over a damaged one"])
def test_a_crash_before_any_call_leaves_the_old_or_the_new(tmp_path, damaged):
    """The state that a power cut leaves, call by call; what was renamed but not synced may also be missing."""
    before = tmp_path / "before"
    for step in (1, 2, 3):
        checkpoint.save(before, example(step))
    if damaged:
        checkpoint.save(before, example(4))
        (before / "step-4" / "state.json").write_text("")
    shutil.copytree(before, tmp_path / "count")
    num_calls = calls_of(tmp_path / "count", 4)
    assert num_calls > 25
    newest = []
    for at in range(1, num_calls + 1):
        folder = tmp_path / str(at)
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            FileSystem(patch, Crash(), at)
            save_and_rotate(folder, 4)
        found, complaints = checkpoint.load_newest(folder)
        assert found is not None and same(found, example(found.step))
        assert damaged or complaints == []
        newest.append(found.step)
        save_and_rotate(folder, 5)  # and the next save cleans up
        assert not [name for name in names(folder) if name.endswith(".tmp")]
        assert same(checkpoint.load_newest(folder)[0], example(5)) and 1 in checkpoint.steps(folder)
    assert set(newest) == {3, 4} and newest == sorted(newest)


def test_a_full_disk_at_any_call_is_a_disk_error_and_costs_no_space(tmp_path):
    before = tmp_path / "before"
    for step in (1, 2, 3):
        checkpoint.save(before, example(step))
    shutil.copytree(before, tmp_path / "count")
    seen = 0
    for at in range(1, calls_of(tmp_path / "count", 4) + 1):
        folder = tmp_path / str(at)
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as patch:
            FileSystem(patch, OSError(errno.ENOSPC, "No space left on device"), at)
            try:
                save_and_rotate(folder, 4)
            except DiskError as error:
                seen += 1
                assert not (folder / "step-4.tmp").exists()
                assert re.search(r"cannot write .*: No space left on device\. Make room", str(error))
            except OSError:  # of the patched rmtree, which the real one does not raise: errors are ignored there
                pass
        found, complaints = checkpoint.load_newest(folder)
        assert complaints == [] and same(found, example(found.step)) and found.step in (3, 4)
    assert seen > 15


def test_half_deleted_leftovers_are_no_checkpoint(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, example(step))
    (tmp_path / "step-2").rename(tmp_path / "step-2.old.tmp")
    (tmp_path / "step-2.old.tmp" / "state.json").unlink()
    found, complaints = checkpoint.load_newest(tmp_path)
    assert same(found, example(1)) and complaints == []


def test_writing_atomically_leaves_no_temporary_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, "old")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left on device"):
        write_atomically(file, "new")
    assert file.read_text() == "old" and names(tmp_path) == ["file"]


def test_nothing_is_ever_unpickled():
    root = Path(jointmae.__file__).parent
    forbidden = re.compile(
        r"\bpickle\b|(?<!safetensors\.)torch\.load\(|\bjoblib\b|\bdill\b|\bmarshal\b|allow_pickle\s*=\s*True"
    )
    found = [path.name for path in root.rglob("*.py") if forbidden.search(path.read_text("utf-8"))]
    assert found == []
