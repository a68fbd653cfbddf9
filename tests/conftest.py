"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.processes import Launcher

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-order", action="store_true", help="tests/simt: threads ascending, descending, shuffled")
    parser.addoption(
        "--every-fault", action="store_true", help="tests/simt: all faults are planted, each barrier removed once"
    )
    parser.addoption("--every-tile", action="store_true", help="the Triton kernels are compiled for all they are for")
    parser.addoption("--release", action="store_true", help="tests/faults: as many faults as before a release, hours")


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def num_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a process of its own, with the checkout on its path."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment},
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded sets are kept with the test's files, not in the user's cache; also by commands that tests start."""
    os.environ["JOINTMAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    """A test may set torch's threads (`--threads` does); the bits of the next one must not depend on it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of three steps, `run`, and its set of 48 and 30 labelled clouds, `clouds.h5`."""
    from jointmae.pretraining import train
    from tests.runs import small_config, write_clouds

    folder = tmp_path_factory.mktemp("trained")
    write_clouds(folder / "clouds.h5", train=48, test=30, labels=True, parts=True)
    assert train(small_config(folder, "--max-steps", "3")) == 0
    return folder


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Runs of one and of several processes."""
    started = Launcher(tmp_path_factory.mktemp("launcher"))
    yield started
    started.close()
