"""Many files, read by worker processes: in order, and whatever one of them does to its reader stays with it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jointmae.data import worker_process
from jointmae.data.reading import Cloud, Request, read_clouds
from jointmae.errors import DataError
from tests.shape_files import EXAMPLES


def make(folder: Path, count: int) -> list[Request]:
    for i in range(count):
        np.save(folder / f"{i}.npy", np.full((4, 3), i, np.float32))
    return [Request(folder / f"{i}.npy") for i in range(count)]


def workers() -> list[int]:
    """The worker processes of this one; without /proc none is seen."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"jointmae.data.worker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has just ended
            continue
    return found


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see the workers")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_order_is_that_of_the_requests(tmp_path: Path, num_workers: int) -> None:
    requests = make(tmp_path, 30)
    (tmp_path / "7.npy").write_bytes(b"broken")
    results = list(read_clouds(requests, num_workers))
    assert len(results) == 30 and isinstance(results[7], DataError) and results[7].file == str(tmp_path / "7.npy")
    for i, result in enumerate(results):
        assert i == 7 or (isinstance(result, Cloud) and result.points[0, 0] == i and not result.is_mesh)
    assert workers() == []


def test_meshes_are_sampled_the_same_by_any_worker(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_bytes(EXAMPLES["pyramid.off"])
    requests = [Request(tmp_path / "a.off", num_points=50, seed=i // 2) for i in range(4)]
    a, b, c, _ = read_clouds(requests, 2)
    assert isinstance(a, Cloud) and isinstance(b, Cloud) and isinstance(c, Cloud) and a.is_mesh
    np.testing.assert_array_equal(a.points, b.points)
    assert a.points.shape == (50, 3) and (a.points != c.points).any()


def test_a_file_that_holds_its_reader_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ever comes out of a pipe that nobody writes to; or it is no regular file, and refused as that."""
    requests = make(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe.npy")
    monkeypatch.setattr(worker_process, "BASE_SECONDS", 1)
    begin = time.monotonic()
    results = list(read_clouds([*requests, Request(tmp_path / "pipe.npy"), *requests], 1))
    assert isinstance(results[3], DataError) and time.monotonic() - begin < 30
    assert all(isinstance(result, Cloud) for i, result in enumerate(results) if i != 3)


@NEEDS_PROC
def test_a_reader_that_is_stopped_or_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs costs one file its time; one that is killed costs one file at the most."""
    monkeypatch.setattr(worker_process, "BASE_SECONDS", 1)
    for number, how in (("hang", signal.SIGSTOP), ("die", signal.SIGKILL)):
        (tmp_path / number).mkdir()
        clouds = read_clouds(make(tmp_path / number, 60), 1)
        assert isinstance(next(clouds), Cloud)
        (worker,) = workers()
        os.kill(worker, how)
        results = list(clouds)
        bad = [result for result in results if isinstance(result, DataError)]
        assert len(results) == 59 and len(bad) <= 1
        assert all(error.file.startswith(str(tmp_path)) and ("reader" in error.what) for error in bad)
    assert workers() == []


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (result,) = read_clouds([Request(tmp_path / "none.npy")])
    assert isinstance(result, DataError) and "none.npy" in str(result)


@NEEDS_PROC
def test_closing_early_leaves_no_process(tmp_path: Path) -> None:
    clouds = read_clouds(make(tmp_path, 40), 2)
    next(clouds)
    assert workers()
    clouds.close()  # type: ignore[attr-defined]
    assert workers() == [] and threading.active_count() < 20


def test_requests_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    taken = []

    def requests():
        for request in make(tmp_path, 100):
            taken.append(request)
            yield request

    clouds = read_clouds(requests(), 2)
    next(clouds)
    assert len(taken) < 30
    clouds.close()  # type: ignore[attr-defined]


def test_a_negative_number_of_workers_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        read_clouds([], -1)
