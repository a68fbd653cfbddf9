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
FAILED = (1, -signal.SIGSEGV, -signal.SIGABRT)  # a test did, or all of them by an index that was garbage
BARRIER = re.compile(r"^ *(__syncthreads|__syncwarp|cluster_sync|grid_sync)\(.*?\);", re.MULTILINE)

FPS = "farthest_point_sample/farthest_point_sample_cuda.cu"
CHAMFER = "chamfer_distance/chamfer_distance_cuda.cu"
GROUP = "group/group_cuda.cu"
INVERSE = "common/inverse_index_cuda.cu"
PROJECT = "project_points/project_points_cuda.cu"


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
    "the last window of equally near columns": Fault(
        CHAMFER, "if (nearest[r] < before[r]) window", "if (nearest[r] <= before[r]) window"
    ),
    "the last of equally near columns": Fault(CHAMFER, "if (d[r] < nearest[r])", "if (d[r] <= nearest[r])"),
    "a window beyond the cloud": Fault(CHAMFER, "if (first >= num_others) first = num_others - 1;", ""),
    "a point's own distance first on both sides": Fault(CHAMFER, "grad_y, M, false, {}", "grad_y, M, true, {}"),
    "a row before the first": Fault(GROUP, "index[a] >= 0 && ", ""),
    "sums from the last reader on": Fault(INVERSE, "same & ((1u << lane) - 1)", "same & ~((2u << lane) - 1)"),
    "a list from the cloud's first source on": Fault(INVERSE, "first += static_cast<int>(sources.begin);", ""),
    "knn: ties at the limit of a tile": Fault("knn/knn_cuda.cu", "distances[i] > limit", "distances[i] >= limit"),
    "knn: a limit that too few are within": Fault("knn/knn_cuda.cu", "if (within < k) {", "if (within < k - 1) {"),
    "knn: ties at the last digit": Fault("knn/knn_cuda.cu", "key >> open <= beginning", "key >> open < beginning"),
    "knn: a box without its lowest index": Fault(
        "knn/knn_tree_cuda.cu", "+ dz * dz, __float_as_uint(low.w)", "+ dz * dz, 0xFFFFFFFFu"
    ),
    "knn: ties at the neighbour's bound": Fault("knn/knn_tree_cuda.cu", "<< 32 | 0xFFFFFFFFu;", "<< 32;"),
    "knn: a buffer that is not merged": Fault("knn/nearest.h", "if (num_buffered_ > 0) merge_buffer();", ""),
    "knn: a gradient of the wrong sign": Fault("knn/knn_cuda.cu", "grad_of(-grad_sq_dists", "grad_of(grad_sq_dists"),
    "ties go to the last point": Fault(PROJECT, "if (z < pixels.nearest[k])", "if (z <= pixels.nearest[k])"),
    "points that wait for the next step are lost": Fault(PROJECT, "num_waiting = total - from;", "num_waiting = 0;"),
    "the points of a group in reverse": Fault(PROJECT, "from + (kWarpSize - 1 - lane)", "from + lane"),
    "a point is taken for hidden behind nearer ones": Fault(
        PROJECT, "point.z >= farthest", "point.z >= 0.9f * farthest"
    ),
    "a footprint misses the tiles to its right": Fault(PROJECT, "right = min(p.x + tiling.radius,", "right = min(p.x,"),
    "a gradient from one column too few": Fault(
        "project_points/project_points_backward_cuda.cu",
        "columns + team.member < width",
        "columns + team.member < width - 1",
    ),
}

# Those that every run plants: memory that is used again too early, an index out of range, a wrong comparison.
ALWAYS = ("warps' slots of the step before", "a row before the first", "knn: ties at the limit of a tile")

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
        op = Path(file).parent.name.replace("common", "group")
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-xq", "--every-order", "tests/simt", "-k", f"{op} and not faults"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JOINTMAE_SIMT_MODULE": str(module)},
            check=False,
            timeout=900,
        )

    return run


@pytest.fixture
def every_fault(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--every-fault"))


def test_every_fault_can_be_planted():
    assert {name for name, fault in FAULTS.items() if (CSRC / fault.file).read_text().count(fault.right) != 1} == set()
    assert set(ALWAYS) <= set(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_fails(run_with, every_fault, name):
    if name not in ALWAYS and not every_fault:
        pytest.skip("needs --every-fault: about 20 s for each")
    fault = FAULTS[name]
    done = run_with(fault.file, (CSRC / fault.file).read_text().replace(fault.right, fault.wrong))
    assert done.returncode in FAILED, done.stdout + done.stderr


def barriers() -> list[tuple[str, int]]:
    """File and position of each barrier of each kernel."""
    files = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("*/*_cuda.cu"))
    return [(file, match.start()) for file in files for match in BARRIER.finditer((CSRC / file).read_text())]


@pytest.mark.parametrize(("file", "at"), barriers())
def test_no_barrier_can_be_left_out(run_with, every_fault, file, at):
    if (file, at) != barriers()[0] and not every_fault:
        pytest.skip("needs --every-fault: about 20 s for each")
    text = (CSRC / file).read_text()
    done = run_with(file, text[:at] + BARRIER.sub(";", text[at:], count=1))
    line = text[:at].count("\n") + 1
    assert done.returncode in FAILED, f"{file}:{line}: {text[at:].splitlines()[0].strip()} is not missed"
