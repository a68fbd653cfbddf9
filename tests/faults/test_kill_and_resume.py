"""A run that real signals stop, again and again, ends in the same bytes. JOINTMAE_KILLS=50 kills more often."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import results, small_argv

KILLS = int(os.environ.get("JOINTMAE_KILLS", "4"))
# Checkpoints all the time, so that a good part of the kills hits a save; steps take a few hundredths of a second.
COMMAND = """
import sys
import jointmae.trainer
jointmae.trainer.CHECKPOINT_SECONDS = 0.05
from jointmae import cli, train
cli.run(train.main)
"""


def start(argv: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(argv: list[str]) -> None:
    process = start(argv)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", (out, err)


def progress_of(run: Path) -> tuple[int, int]:
    """The newest step that is in a file, and the number of files in checkpoints."""
    try:
        status = json.loads((run / "status.json").read_text())
        return status["step"], len(list((run / "checkpoints").rglob("*")))
    except (OSError, ValueError):
        return -1, 0


def wait_for_progress(process: subprocess.Popen[str], run: Path, before: tuple[int, int]) -> bool:
    """Until something is written that was not there; False if the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if progress_of(run) != before:
            return True
        time.sleep(0.001)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(small_argv(folder, "--epochs", "6"))
    return folder


def test_killed_again_and_again(whole, tmp_path):
    """SIGKILL at random moments; each attempt is let live until it has written something."""
    generator = random.Random(0)
    argv = small_argv(tmp_path, "--epochs", "6")
    run, kills = tmp_path / "run", 0
    while kills < KILLS:
        before = progress_of(run)
        process = start(argv)
        if wait_for_progress(process, run, before):
            time.sleep(generator.uniform(0, 0.25))
        process.kill()
        _, err = process.communicate(timeout=120)
        kills += 1
        assert process.returncode in (-signal.SIGKILL, 0) and err == "", err
        if process.returncode == 0:
            break
    finish(argv)
    assert results(run) == results(whole / "run")
    assert not list(run.rglob("step-*.tmp"))


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
def test_asked_to_stop(whole, tmp_path, number, code, name):
    argv = small_argv(tmp_path, "--epochs", "6")
    run = tmp_path / "run"
    process = start(argv)
    assert wait_for_progress(process, run, (0, 0)) and wait_for_progress(process, run, progress_of(run))
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and err == "", (out, err)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", code, status["checkpoint"])
    assert out.splitlines()[-1] == f"stopped by {name}; the same command resumes at step {status['step']}"
    finish(argv)
    assert results(run) == results(whole / "run")


def test_a_file_that_may_not_grow_is_a_full_disk(whole, tmp_path):
    """A limit on file sizes stands in for a full disk: the kernel refuses to write the weights."""
    argv = small_argv(tmp_path, "--epochs", "6")
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash", sys.executable, "-c", COMMAND, *argv]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(limited, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 74, (done.stdout, done.stderr)
    assert "cannot write" in done.stderr and "Make room" in done.stderr and len(done.stderr.splitlines()) <= 6
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 74)
    finish(argv)
    assert results(tmp_path / "run") == results(whole / "run")
