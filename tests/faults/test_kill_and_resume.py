"""A run that real signals stop, again and again, or in any phase, ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import results, small_argv, write_clouds

# Checkpoints all the time, so that a good part of the kills hits a save; steps take a few hundredths of a second.
COMMAND = """
import sys
import jointmae.trainer
jointmae.trainer.CHECKPOINT_SECONDS = 0.05
from jointmae import cli, train
cli.run(train.main)
"""


def start(argv: list[str], code: str = COMMAND) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdin=subprocess.PIPE,
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


def test_killed_again_and_again(whole, tmp_path, release):
    """SIGKILL at random moments, 10 times (1,000 with --release); each attempt lives until it has written something."""
    generator = random.Random(0)
    shutil.copy(whole / "clouds.h5", tmp_path)
    argv = small_argv(tmp_path, "--epochs", "6")
    run, kills, runs = tmp_path / "run", 0, 1
    while kills < (1000 if release else 10):
        before = progress_of(run)
        process = start(argv)
        if wait_for_progress(process, run, before):
            time.sleep(generator.uniform(0, 0.25))
        process.kill()
        _, err = process.communicate(timeout=120)
        assert process.returncode in (-signal.SIGKILL, 0) and err == "", err
        if process.returncode == 0:  # it was done: from the beginning
            assert results(run) == results(whole / "run")
            shutil.rmtree(run)
            runs += 1
        kills += process.returncode != 0
    finish(argv)
    assert results(run) == results(whole / "run")
    assert not list(run.rglob("step-*.tmp"))
    print(f"{kills} kills in {runs} runs, all of which ended in the bytes of a run that was not killed")


SIGNALS = [(number, 128 + number, number.name) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_asked_to_stop(whole, tmp_path, number, code, name):
    argv = small_argv(tmp_path, "--epochs", "6")
    run = tmp_path / "run"
    process = start(argv)
    while progress_of(run)[0] < 1:
        assert wait_for_progress(process, run, progress_of(run))
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and err == "", (out, err)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", code, status["checkpoint"])
    assert status["step"] >= 1
    assert out.splitlines()[-1] == f"stopped by {name}; the same command resumes at step {status['step']}"
    finish(argv)
    assert results(run) == results(whole / "run")


# Where a run is when it is stopped: the function that it is in, and whether it can say so in status.json.
PHASES = {
    "data": ("jointmae.pretraining.load_training_data", False),
    "building the model": ("jointmae.step.adamw", False),
    "the first step": ("jointmae.pretraining.augment", True),
    "a save": ("jointmae.checkpoint.save", True),
    "the last weights": ("jointmae.trainer.write_atomically", True),
    "evaluation": ("jointmae.evaluate.write_atomically", True),
}
PAUSE = """
import sys, importlib
name, function = sys.argv.pop(1).rsplit(".", 1)
module = importlib.import_module(name)
entered = getattr(module, function)
def pause(*arguments, **options):
    print("here", flush=True)
    sys.stdin.readline()
    return entered(*arguments, **options)
setattr(module, function, pause)
"""


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """A run on labelled clouds, without evaluation."""
    folder = tmp_path_factory.mktemp("epoch")
    write_clouds(folder / "clouds.h5", test=9, labels=True)
    finish(small_argv(folder, "--epochs", "1"))
    return folder


@pytest.mark.parametrize("phase", PHASES)
def test_asked_to_stop_in_any_phase(one_epoch, tmp_path_factory, phase, release):
    """SIGTERM (and with --release the others): its exit code, no traceback, and the run goes on exactly."""
    function, recorded = PHASES[phase]
    for number, code, name in SIGNALS if release else SIGNALS[:1]:
        folder = tmp_path_factory.mktemp("phase")
        shutil.copy(one_epoch / "clouds.h5", folder)
        argv = small_argv(folder, "--epochs", "1")
        process = start([function, *(word for word in argv if word != "--no-evaluate")], PAUSE + COMMAND)
        assert process.stdout is not None
        while process.stdout.readline() not in ("here\n", ""):
            pass
        process.send_signal(number)
        out, err = process.communicate("\n" * 100, timeout=120)
        assert "Traceback" not in err, err
        if recorded:
            status = json.loads((folder / "run/status.json").read_text())
            assert (process.returncode, status["state"], status["exit_code"]) == (code, "stopped", code), (out, err)
            assert f"stopped by {name}; the same command resumes at step {status['checkpoint']}" in out
        else:  # nothing is there to be saved yet: the system's own way will do
            assert process.returncode == (130 if number == signal.SIGINT else -number), (out, err)
            assert not (folder / "run/status.json").exists()
        finish([word for word in argv if word != "--no-evaluate"])
        assert results(folder / "run") == results(one_epoch / "run")


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
