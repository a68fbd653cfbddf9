"""scripts/kernel_resources.py: a kernel that spills is seen, in the sources and in what was built from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "kernel_resources.py"
NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
FINE = "__global__ void fine_kernel(float* out) { out[threadIdx.x] = 1; }\n"
SPILLING = """
__global__ void spilling_kernel(float* out, const float* in, int n) {
  float values[64];
  for (int i = 0; i < 64; i++) values[i] = in[i];
  for (int i = 0; i < n; i++) values[(i * i) % 64] += values[(i * 7) % 64];
  out[threadIdx.x] = values[threadIdx.x];
}
"""  # an array indexed by what is known only when it runs lies in a stack frame
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_80'
ptxas info    : Function properties for _Z1aPf
    592 bytes stack frame, 704 bytes spill stores, 840 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 592 bytes cumulative stack size, 4096 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 39.161 ms
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_80'
ptxas info    : Function properties for _Z1bPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers
"""
CUOBJDUMP = """\
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1aPf:
  REG:32 STACK:1080 SHARED:1024 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import kernel_resources

    return kernel_resources


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_what_the_tools_print_is_understood(script):
    a, b = script.of_ptxas(PTXAS)
    assert a == script.Kernel("_Z1aPf", "sm_80", 32, 4096, 592, 704 + 840) and not a.is_fine
    assert b == script.Kernel("_Z1bPf", "sm_80", 12, 0, 0, 0) and b.is_fine
    (a,) = script.of_cuobjdump(CUOBJDUMP)
    assert a == script.Kernel("_Z1aPf", "sm_90", 32, 1024, 1080) and not a.is_fine


@NEEDS_NVCC
def test_a_stack_frame_fails(tmp_path):
    (tmp_path / "fine.cu").write_text(FINE)
    (tmp_path / "spilling.cu").write_text(SPILLING)
    assert _run(tmp_path / "fine.cu").returncode == 0
    done = _run(tmp_path / "fine.cu", tmp_path / "spilling.cu")
    assert done.returncode == 1
    marked = [line.split()[5:] for line in done.stdout.splitlines() if line.endswith("<- not in registers")]
    assert [line[0] for line in marked] == ["spilling_kernel"] * 2
    assert done.stdout.endswith("4 kernels, 2 with a spill or a stack frame\n")


@NEEDS_NVCC
@pytest.mark.skipif(not (shutil.which("cuobjdump") or find_spec("triton")), reason="needs cuobjdump")
def test_a_stack_frame_of_a_built_file_fails(tmp_path):
    (tmp_path / "spilling.cu").write_text(SPILLING)
    subprocess.run(["nvcc", "-arch=sm_80", "-c", "spilling.cu", "-o", "spilling.o"], cwd=tmp_path, check=True)
    done = _run(tmp_path / "spilling.o")
    assert done.returncode == 1 and "spilling_kernel   <- not in registers" in done.stdout


@NEEDS_NVCC
def test_a_source_with_a_warning_fails(tmp_path):
    (tmp_path / "unused.cu").write_text("__global__ void kernel() { int unused; }\n")
    done = _run(tmp_path / "unused.cu")
    assert done.returncode == 1 and '"unused" was declared but never referenced' in done.stderr


@NEEDS_NVCC
def test_all_architectures_are_those_of_the_build(script):
    assert {"80", "90"} <= set(script.default_architectures())
