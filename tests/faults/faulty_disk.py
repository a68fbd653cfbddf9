"""Saves checkpoints and trains on a disk that fails, or in a process that dies, at each of its calls; see interpose.c.

    LD_PRELOAD=interpose.so python -m tests.faults.faulty_disk FOLDER save|train kill|ENOSPC|EIO|EROFS STRIDE

One process forks all attempts, so that Python and torch are loaded once. Prints what it saw, or raises AssertionError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from jointmae import checkpoint, cli, train, trainer
from jointmae.errors import DiskError
from tests.runs import results, small_argv
from tests.test_checkpoint import example, same

Action = Callable[[Path], None]
REASONS = {"ENOSPC": "No space left on device", "EIO": "Input/output error", "EROFS": "Read-only file system"}
DISK_FAILED = 74


class Attempt:
    """`action(folder)` in a forked process, with a fault in its `at`-th call (0: none)."""

    def __init__(self, action: Action, folder: Path, at: int = 0, fault: str = "") -> None:
        said = folder.with_name(f"{folder.name}.said")
        interpose = ctypes.CDLL(None)
        pid = os.fork()
        if pid == 0:
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            what = {"": 0, "kill": -1}[fault] if fault in ("", "kill") else getattr(errno, fault)
            interpose.interpose_arm(os.fsencode(folder), ctypes.c_long(at), what)
            code = _exit_code(action, folder)
            if not fault:
                print(interpose.interpose_calls())
            sys.stdout.flush()
            os._exit(code)
        self.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.said = said.read_text()
        said.unlink()


def _exit_code(action: Action, folder: Path) -> int:
    try:
        action(folder)
    except DiskError as error:
        print(f"error: {error}")
        return DISK_FAILED
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def num_calls(action: Action, folder: Path) -> int:
    """How many calls `action` makes that change the disk."""
    attempt = Attempt(action, folder)
    assert attempt.code == 0, attempt.said
    return int(attempt.said.split()[-1])


def require_named(attempt: Attempt, folder: Path, fault: str) -> None:
    """A failed attempt says which file could not be written, and why."""
    assert attempt.code == DISK_FAILED, (attempt.code, attempt.said)
    pattern = rf"cannot write {re.escape(str(folder))}\S*( \([\d,]+ bytes; [\d,]+ free\))?: {REASONS[fault]}\. "
    assert re.search(pattern, attempt.said), attempt.said


# ---- one save ----


def save_and_rotate(folder: Path) -> None:
    checkpoint.save(folder, example(4))
    checkpoint.rotate(folder, keep={1})


def saves(work: Path, fault: str, stride: int) -> str:
    """After a fault in any call the newest checkpoint is the old or the new one, and the next save cleans up."""
    before = work / "before"
    for step in (1, 2, 3):
        checkpoint.save(before, example(step))
    calls = num_calls(save_and_rotate, Path(shutil.copytree(before, work / "count")))
    newest: list[int] = []
    failed = sized = 0
    for at in range(1, calls + 1, stride):
        folder = Path(shutil.copytree(before, work / f"save-{at}"))
        attempt = Attempt(save_and_rotate, folder, at, fault)
        if fault == "kill":
            assert attempt.code == -signal.SIGKILL, attempt.said
        elif attempt.code != 0:  # deleting what is no longer wanted may fail: nothing is lost
            require_named(attempt, folder, fault)
            failed += 1
        found, complaints = checkpoint.load_newest(folder)
        assert found is not None and same(found, example(found.step)) and complaints == [], (at, complaints)
        assert attempt.code != 0 or found.step == 4, at
        sized += " bytes; " in attempt.said
        newest.append(found.step)
        if fault == "ENOSPC":
            assert not list(folder.glob("*.tmp")), at  # half a checkpoint does not fill up what is left
        checkpoint.save(folder, example(5))
        checkpoint.rotate(folder, keep={1})
        assert checkpoint.steps(folder)[0] == 5 and 1 in checkpoint.steps(folder) and not list(folder.glob("*.tmp"))
        shutil.rmtree(folder)
    assert set(newest) == {3, 4} and newest == sorted(newest), newest
    assert (fault == "kill" or failed > 15) and (sized > 0) == (fault == "ENOSPC"), (failed, sized)
    return f"{fault} in {len(newest)} of {calls} calls of a save: {failed} failed with exit code 74"


# ---- a whole run ----


def runs(work: Path, fault: str, stride: int) -> str:
    """After a fault in any call of a run the same command ends in the bytes of a run without one."""
    trainer.CHECKPOINT_SECONDS = 0.0  # a checkpoint after each step

    def run(folder: Path) -> None:
        sys.argv = ["train", *small_argv(work, "--threads", "1", "--max-steps", "4")]
        sys.argv[sys.argv.index("--out") + 1] = str(folder / "run")
        cli.run(train.main)

    whole = work / "whole"
    whole.mkdir()
    calls = num_calls(run, whole)
    done = failed = 0
    for at in sorted({1, *range(1 + stride // 2, calls, stride), calls}):
        folder = work / f"run-{at}"
        folder.mkdir()
        attempt = Attempt(run, folder, at, fault)
        if fault == "kill":
            assert attempt.code == -signal.SIGKILL, attempt.said
        elif attempt.code != 0:
            require_named(attempt, folder, fault)
            failed += 1
        else:
            assert results(folder / "run") == results(whole / "run"), at
        again = Attempt(run, folder)
        assert again.code == 0, again.said
        assert results(folder / "run") == results(whole / "run"), at
        shutil.rmtree(folder)
        done += 1
    assert done >= 3 and (fault == "kill" or failed > 0), (calls, done, failed)
    return f"{fault} in {done} of {calls} calls of a run: {failed} failed with exit code 74, all went on exactly"


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has no other threads
    of, fault, stride = sys.argv[2:]
    print({"save": saves, "train": runs}[of](Path(sys.argv[1]), fault, int(stride)))
