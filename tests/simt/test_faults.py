"""Faults planted in the project's own kernels: the tests that the executor runs must fail on each.

A copy of csrc/ is changed in one place, built, and the op's tests run against it in a process of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.simt.conftest import ASAN, ROOT, build_simt

CSRC = ROOT / "csrc"
FAILED = (1, -signal.SIGSEGV)  # a test did, or all of them by an index that was garbage
BARRIER = re.compile(r"^ *(__syncthreads|__syncwarp|cluster_sync|grid_sync)\(.*?\);", re.MULTILINE)

FPS = "farthest_point_sample/farthest_point_sample_cuda.cu"


class Fault(NamedTuple):
    file: str  # in csrc/
    right: str  # what is replaced: it must be there once
    wrong: str


FAULTS: dict[str, Fault] = {
    "the last of equally far points": Fault(FPS, "b.sq_dist > a.sq_dist ? b : a", "b.sq_dist >= a.sq_dist ? b : a"),
    "a point that is not finite begins far away": Fault(
        FPS, "== 0 ? __uint_as_float(0x7F800000u) : 0.0f", "== 0 ? __uint_as_float(0x7F800000u) : 1.0f"
    ),
    "warps' slots of the step before": Fault(FPS, "(key, slots + m % 2 * kWarps)", "(key, slots)"),
    "blocks' slots of the step before": Fault(FPS, "from_blocks + m % 2 * team", "from_blocks"),
    "a distance that is streamed but not kept": Fault(FPS, "if (now < before) streamed[i] = now;", ""),
}

pytestmark = pytest.mark.skipif(ASAN, reason="needs the build without AddressSanitizer: once is enough")


@pytest.fixture(scope="module")
def run_with() -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Runs the tests of the op whose file in csrc/ is given, with that file's text replaced by another."""
    folder = ROOT / "build" / f"simt-faults-{sys.implementation.cache_tag}"
    copy = folder / "csrc"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CSRC, copy)

    def run(file: str, text: str) -> subprocess.CompletedProcess[str]:
        (copy / file).write_text(text)
        try:
            module = build_simt(copy, folder / "build")
        finally:
            shutil.copy(CSRC / file, copy / file)
        op = Path(file).parent.name
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-xq", "tests/simt", "-k", f"{op} and not test_faults"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JOINTMAE_SIMT_MODULE": str(module)},
            check=False,
        )

    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails(run_with, name):
    fault = FAULTS[name]
    text = (CSRC / fault.file).read_text()
    assert text.count(fault.right) == 1
    done = run_with(fault.file, text.replace(fault.right, fault.wrong))
    assert done.returncode in FAILED, done.stdout + done.stderr


def barriers() -> list[tuple[str, int]]:
    """File and position of each barrier of each kernel."""
    files = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("*/*_cuda.cu"))
    return [(file, match.start()) for file in files for match in BARRIER.finditer((CSRC / file).read_text())]


@pytest.mark.parametrize(("file", "at"), barriers())
def test_no_barrier_can_be_left_out(request, run_with, file, at):
    if not request.config.getoption("--every-barrier"):
        pytest.skip("needs --every-barrier: about 20 s for each")
    text = (CSRC / file).read_text()
    done = run_with(file, text[:at] + BARRIER.sub(";", text[at:], count=1))
    line = text[:at].count("\n") + 1
    assert done.returncode in FAILED, f"{file}:{line}: {text[at:].splitlines()[0].strip()} is not missed"
