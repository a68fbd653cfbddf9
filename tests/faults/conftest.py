"""How many faults: a few with every change, all or a great many of them with --release."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(0 if config.getoption("--release") else 600))


@pytest.fixture(scope="session")
def release(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--release"))


@pytest.fixture(scope="session")
def interpose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """interpose.c as a library."""
    if sys.platform != "linux":
        pytest.skip("needs Linux: interpose.c stands in for the calls of its C library")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to stand between Python and the C library")
    library = tmp_path_factory.mktemp("interpose") / "interpose.so"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library)]
    done = subprocess.run([*command, str(HERE / "interpose.c"), "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
