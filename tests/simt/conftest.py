"""Builds the CUDA kernels for the CPU (see simt.h) and puts them where the CPU's kernels are.

With JOINTMAE_SIMT_ASAN=1 they are built with AddressSanitizer, whose library must then be loaded first, and that of C++
with it: `JOINTMAE_SIMT_ASAN=1 ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(g++ -print-file-name=libasan.so)
$(g++ -print-file-name=libstdc++.so)" pytest tests/simt`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from jointmae.ops import native, registry

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ASAN = os.environ.get("JOINTMAE_SIMT_ASAN") == "1"
ORDERS = (0, 1, 2, 3, 20261123)  # ascending, descending, shuffled in three ways


def build_simt(csrc: Path, folder: Path) -> Path:
    """The kernels of `csrc` compiled by g++ into a module in `folder`; its path."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=tools), shutil.which("ninja", path=tools)
    pybind11 = importlib.util.find_spec("pybind11")
    if not (cmake and ninja and pybind11 and shutil.which("c++")):
        pytest.skip("needs a C++ compiler, cmake, ninja and pybind11 (extra `test`) to build the kernels for the CPU")
    assert pybind11 is not None
    pybind11_dir = Path(str(pybind11.origin)).parent / "share/cmake/pybind11"
    for command in (
        [
            *(cmake, f"-S{HERE}", f"-B{folder}", "-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCSRC={csrc}"),
            *(
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11_dir}",
                f"-DJOINTMAE_SIMT_ASAN={'ON' if ASAN else 'OFF'}",
            ),
        ],
        [cmake, "--build", str(folder)],
    ):
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / ("jointmae_simt" + str(sysconfig.get_config_var("EXT_SUFFIX")))


def load_simt(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("jointmae_simt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def simt() -> ModuleType:
    """The module `jointmae_simt`, built once and again when a source has changed, or the one of test_faults.py."""
    if "JOINTMAE_SIMT_MODULE" in os.environ:
        return load_simt(Path(os.environ["JOINTMAE_SIMT_MODULE"]))
    folder = ROOT / "build" / f"simt{'-asan' if ASAN else ''}-{sys.implementation.cache_tag}"
    return load_simt(build_simt(ROOT / "csrc", folder))


@pytest.fixture
def on_simt(simt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module; while the test runs, the ops on CPU tensors are the CUDA kernels, in ascending order of threads."""
    library = torch.library.Library("jointmae", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for name, implementation in registry.cuda_implementations.items():
            library.impl(name, implementation, "CPU", allow_override=True)
    monkeypatch.setattr(native, "cuda", simt)
    monkeypatch.setattr(native, "stream_of", lambda tensor: (0, 0))
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN and the largest integers
    yield simt
    torch.use_deterministic_algorithms(False)
    simt.set_order(0)
    simt.set_limits()
    library._destroy()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        orders = ORDERS if metafunc.config.getoption("--every-order") else ORDERS[-1:]
        metafunc.parametrize("device", orders, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, on_simt: ModuleType) -> torch.device:
    """CPU tensors, on which the CUDA kernels run, in shuffled order or, by an option, once in each order of ORDERS."""
    on_simt.set_order(request.param)
    return torch.device("cpu")
