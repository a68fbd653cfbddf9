"""A long run holds no more at its end than at its beginning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import small_argv

STEPS, EVERY, WARM = 2000, 100, 500
COUNT = """
import gc, os, json, sys
import torch
from pathlib import Path
from jointmae import cli, train, trainer
counts, step = [], trainer.Trainer._train_step
def counted(self, progress):
    step(self, progress)
    if self.step % every == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        gc.collect()
        tensors = sum(isinstance(it, torch.Tensor) for it in gc.get_objects())
        counts.append((self.step, pages * os.sysconf("SC_PAGE_SIZE"), files, threads, tensors))
every = int(sys.argv.pop(1))
trainer.Trainer._train_step = counted
code = train.main(sys.argv[1:])
print("\\n" + json.dumps(counts))
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, whose /proc says what a process holds")
def test_memory_files_and_threads_do_not_grow(tmp_path):
    """2,000 steps with a checkpoint every 12, the first 500 of them to warm up."""
    smaller = "--num-points 64 --num-centers 16 8 --num-neighbors 4 2 --num-target-neighbors 4 --image-size 32"
    argv = small_argv(tmp_path, *smaller.split(), "--batch-size", "2", "--epochs", "200", "--max-steps", str(STEPS))
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(EVERY), *argv, "--threads", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [count for count in json.loads(done.stdout.splitlines()[-1]) if count[0] >= WARM]
    _, memory, files, threads, tensors = zip(*counts, strict=True)
    assert len(counts) == (STEPS - WARM) // EVERY + 1
    assert max(memory[len(memory) // 2 :]) < 1.02 * max(memory[: len(memory) // 2]), memory
    for held in (files, threads, tensors):
        assert max(held) == min(held), (files, threads, tensors)
