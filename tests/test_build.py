"""What a user meets who builds: a stale module, a wrong setting, no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from jointmae.build_info import source_hash
from jointmae.ops.native import kernels
from tests.conftest import ROOT

# Not find_spec("pip"): it makes setuptools stand back, and torch.compile then cannot load it in this process.
INSTALLED = {distribution.name for distribution in distributions()}

SOURCES = ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "csrc", "jointmae", "pyproject.toml", "setup.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build needs, so that a test leaves nothing in this checkout."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            (tmp_path / "checkout").mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


def _run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def _words(text: str) -> str:
    return " ".join(text.split())  # CMake wraps its messages


def test_source_hash_is_of_csrc(checkout):
    before = source_hash(checkout)
    assert before == source_hash(ROOT)
    (checkout / "csrc" / "common" / "isa.h").open("a").write("\n")
    assert source_hash(checkout) != before
    assert source_hash(checkout / "jointmae") is None


def test_a_stale_module_is_named_on_import(run_python):
    code = """
import sys, types, warnings
stale = sys.modules["jointmae_native"] = types.ModuleType("jointmae_native")
stale.source_hash = "of other sources"
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from jointmae import ops
    ops.farthest_point_sample(torch.rand(1, 4, 3), 2)
for warning in caught:
    print(warning.message)
"""
    done = run_python(code)
    assert done.stdout.splitlines() == [
        "jointmae: the native kernels are not used: jointmae_native was built from other sources than this checkout's "
        "csrc/; rebuild: run `pip install .` in the checkout"
    ]


@pytest.mark.skipif(not (shutil.which("cmake") and "pybind11" in INSTALLED), reason="needs cmake and pybind11")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("BAD", "JOINTMAE_CUDA must be AUTO, ON or OFF, got 'BAD'"),
        ("ON", "JOINTMAE_CUDA=ON, but no nvcc was found: put it on PATH or set CUDACXX"),
    ],
)
def test_wrong_cuda_setting(checkout, value, message):
    if value == "ON" and shutil.which("nvcc"):
        pytest.skip("needs a machine without nvcc")
    done = _run(["setup.py", "-q", "build_ext", "--inplace"], checkout, JOINTMAE_CUDA=value)
    assert done.returncode != 0
    assert message in _words(done.stderr)
    assert "jointmae: building the native kernels failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_instruction_set_is_a_usage_error():
    if kernels is None:
        pytest.skip("needs native kernels")
    done = _run(["-m", "jointmae.train", "--dry-run"], ROOT, JOINTMAE_ISA="sse9")
    assert done.returncode == 2
    assert done.stderr == "error: JOINTMAE_ISA must be scalar, avx2 or avx512, got 'sse9'\n"


@pytest.mark.skipif(not {"pip", "setuptools"} <= INSTALLED, reason="needs pip and setuptools")
def test_no_compiler_gives_a_wheel_without_the_module(checkout, tmp_path):
    (checkout / "README.md").touch()
    arguments = ["-m", "pip", "-v", "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), "."]
    done = _run(arguments, checkout, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr
    assert "jointmae: no C++ compiler found (looked for $CXX, c++, g++, clang++, cl)" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "jointmae/ops/reference.py" in names
    assert not [name for name in names if "native" in Path(name).name and name.endswith((".so", ".pyd"))]
