"""The folder of a run: whose it is, what may change between a run and its continuation, what a crash leaves in it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jointmae.config import RESUMABLE_CHANGES, TrainConfig
from jointmae.errors import CheckpointError, DiskError, UsageError
from jointmae.pretraining import default_folder
from jointmae.recipes import train_config
from jointmae.run_folder import RunFolder

SUMS = {"data_sha256": "sum"}


def begun(path: Path, config: TrainConfig | None = None, sha256: str = "sum") -> RunFolder:
    folder = RunFolder(path, config or train_config(), {"data_sha256": sha256})
    folder.claim()
    folder.begin()
    return folder


def test_the_default_folder_is_named_after_preset_data_and_seed():
    config = dataclasses.replace(train_config("small"), data=("a/b.h5", "c.h5"), seed=3)
    assert default_folder(config) == Path("runs/small-b+c-3")
    assert default_folder(train_config("tiny", "3d-only")) == Path("runs/tiny-3d-only-furniture-0")


def test_nothing_is_written_before_begin(tmp_path):
    RunFolder(tmp_path / "run", train_config(), SUMS)
    assert list(tmp_path.iterdir()) == []


def test_begin_says_what_and_where(tmp_path):
    begun(tmp_path / "run").close()
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["data_sha256"] == "sum" and config["model"]["num_points"] == 1024
    assert {"commit", "command", "packages", "started"} <= set(json.loads((tmp_path / "run/env.json").read_text()))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "env.json"]


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    for name in ("thesis.tex", "a", "b", "c"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"is not empty and holds no run \(found a, b, c\)\. Choose another folder"):
        RunFolder(tmp_path, train_config(), SUMS)


@pytest.mark.parametrize("leftover", ["writable.tmp", "config.json.tmp"])
def test_a_crash_before_the_config_was_written_is_no_stranger(tmp_path, leftover):
    (tmp_path / leftover).touch()
    begun(tmp_path).close()


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/none"])
def test_where_nothing_can_be_written(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot write"):
        begun(tmp_path / path)


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, *value)
    return f"{value}x" if isinstance(value, str) else value + 1  # type: ignore[operator]


def test_a_change_of_any_field_is_another_run_but_for_those_that_may_change(tmp_path):
    config = train_config()
    begun(tmp_path, config).close()
    may_grow = {"epochs", "max_steps"}
    for field in dataclasses.fields(config):
        if field.name == "model":
            continue
        other = dataclasses.replace(config, **{field.name: changed(getattr(config, field.name))})
        if field.name in RESUMABLE_CHANGES | may_grow - {"max_steps"}:
            RunFolder(tmp_path, other, SUMS)
            continue
        with pytest.raises(UsageError, match=f"another config.*\n  {field.name}: .* there, .* now"):
            RunFolder(tmp_path, other, SUMS)
    for field in dataclasses.fields(config.model):
        model = dataclasses.replace(config.model, **{field.name: changed(getattr(config.model, field.name))})
        with pytest.raises(UsageError, match=f"\n  model.{field.name}: "):
            RunFolder(tmp_path, dataclasses.replace(config, model=model), SUMS)
    with pytest.raises(UsageError, match="\n  data_sha256: sum there, another now"):
        RunFolder(tmp_path, config, {"data_sha256": "another"})


def test_only_these_changes_make_no_other_run():
    options = {"out", "device", "threads", "resume", "dry_run", "evaluate", "tensorboard", "compile", "accumulate"}
    options |= {"auto_batch", "parallel", "cuda_graphs", "runs", "json"}
    assert options == RESUMABLE_CHANGES


@pytest.mark.parametrize(
    ("name", "old", "new", "allowed"),
    [
        ("epochs", 3, 4, True),
        ("epochs", 3, 2, False),
        ("max_steps", 3, 4, True),
        ("max_steps", 3, 0, True),  # 0 is no limit
        ("max_steps", 3, 2, False),
        ("max_steps", 0, 3, False),
    ],
)
def test_a_run_may_grow_and_not_shrink(tmp_path, name, old, new, allowed):
    config = train_config()
    begun(tmp_path, dataclasses.replace(config, **{name: old})).close()
    if allowed:
        RunFolder(tmp_path, dataclasses.replace(config, **{name: new}), SUMS)
        return
    with pytest.raises(UsageError, match=f"\n  {name}: {old} there, {new} now"):
        RunFolder(tmp_path, dataclasses.replace(config, **{name: new}), SUMS)


def test_many_differences_are_few_lines(tmp_path):
    begun(tmp_path).close()
    with pytest.raises(UsageError) as error:
        RunFolder(tmp_path, train_config("paper"), SUMS)
    assert len(str(error.value).splitlines()) <= 5 and "more" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"model": 3}', '{"epochs": "many"}', "\x00"])
def test_a_damaged_config_is_never_a_traceback(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((CheckpointError, UsageError), match=str(tmp_path)):
        RunFolder(tmp_path, train_config(), SUMS)


@pytest.mark.parametrize("content", [None, "", "[]", '{"state": "finished"}', '{"state": "running", "step": 9}'])
def test_any_other_status_is_not_finished(tmp_path, content):
    folder = begun(tmp_path)
    (tmp_path / "model.safetensors").touch()
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert not folder.is_finished(9, evaluated=False)
    folder.write_status("finished", step=9, evaluated=False)
    assert folder.is_finished(9, evaluated=False)
    assert not folder.is_finished(10, evaluated=False) and not folder.is_finished(9, evaluated=True)
    folder.write_status("finished", step=9, evaluated=True)
    assert folder.is_finished(9, evaluated=False) and folder.is_finished(9, evaluated=True)
    (tmp_path / "model.safetensors").unlink()
    assert not folder.is_finished(9, evaluated=False)


LINES = b'{"step": 1}\n{"step": 10}\n{"step": 20}\n'


@pytest.mark.parametrize(
    ("content", "step", "kept"),
    [
        (LINES, 20, LINES),
        (LINES, 19, LINES[:25]),
        (LINES, 0, b""),
        (LINES[:-1], 99, LINES[:25]),  # the last line is not whole
        (LINES[:-3], 99, LINES[:25]),
        (LINES + b"\0" * 64, 99, LINES),  # what a power cut can leave behind
        (LINES + b"\0" * 64 + b"\n" + LINES, 99, LINES),
        (LINES + b"[]\n{}\n", 99, LINES),
        (b"", 99, b""),
    ],
)
def test_lines_past_a_step_are_cut(tmp_path, content, step, kept):
    folder = begun(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    folder.cut_after(step)
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
    folder.append("metrics", {"step": 21})
    folder.sync()
    folder.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept + b'{"step": 21}\n'


def test_no_nan_in_metrics(tmp_path):
    folder = begun(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        folder.append("metrics", {"step": 1, "loss": float("nan")})


HOLDER = """
import sys
from pathlib import Path
from jointmae.recipes import train_config
from jointmae.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), train_config(), {"data_sha256": "sum"})
folder.claim()
folder.begin()
print("begun", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    """A second process is refused while the first lives, and let in when it has been killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert holder.stdout is not None and holder.stdout.readline() == b"begun\n"
    try:
        with pytest.raises(UsageError, match="another process is training in"):
            begun(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    begun(tmp_path).close()
