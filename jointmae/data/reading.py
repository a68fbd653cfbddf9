"""Many files of one cloud or mesh each, read by worker processes; whatever one of them does to its reader.

A file that crashes a worker, hangs it or eats its memory is a DataError that names the file; a new worker reads the
next. Workers are started as programs of their own (`jointmae.data.worker`), so that they neither inherit threads by
a fork nor import the user's main script again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jointmae.data.worker_process import WorkerProcess
from jointmae.errors import DataError

MAX_WORKERS = 16
"""Where the caller leaves the number to us: more wait for the disk only."""

FILES_PER_WORKER = 8
"""A worker takes 0.2 s to start, a small file some ms: one more is started for so many files each."""

LOOK_AHEAD = 4
"""Files a worker that are read before the caller asks for them; they are in memory at the same time."""


@dataclass(frozen=True)
class Request:
    """One file to read."""

    path: Path
    member: str = ""  # of a zip archive, read in memory and never extracted; or the file itself
    name: str = ""  # what errors call it; else the path and the member
    num_points: int = 0  # sampled from a mesh, by area; a cloud stays as it is
    seed: int = 0  # of the sampling

    def __str__(self) -> str:
        return self.name or (f"{self.path}:{self.member}" if self.member else str(self.path))


@dataclass(frozen=True, eq=False)
class Cloud:
    """What one file holds."""

    points: NDArray[np.float32] | NDArray[np.float64]  # [N, 3], N >= 1
    is_mesh: bool  # sampled from a surface


def read_clouds(requests: Iterable[Request], num_workers: int = 0) -> Iterator[Cloud | DataError]:
    """What each file holds, or what is wrong with it, in the order of the requests, which are taken as they are needed.

    With `num_workers` 0 there is one for each core, at most MAX_WORKERS, and fewer for few files. The order, the
    points and the messages do not depend on the number. Workers end when the iterator is exhausted or closed. Raises
    ValueError for a negative number, WorkerError where no worker can be started.
    """
    if num_workers < 0:
        raise ValueError(f"read_clouds: num_workers must be at least 0, got {num_workers}")
    return _read_clouds(iter(requests), num_workers or min(os.cpu_count() or 1, MAX_WORKERS))


def _read_clouds(requests: Iterator[Request], num_workers: int) -> Iterator[Cloud | DataError]:
    pool = _Pool(num_workers)
    with contextlib.closing(pool):
        pending: deque[Future[Cloud | DataError]] = deque()
        for request in itertools.islice(requests, num_workers * LOOK_AHEAD):
            pending.append(pool.submit(request))
        while pending:
            yield pending.popleft().result()
            for request in itertools.islice(requests, 1):
                pending.append(pool.submit(request))


class _Pool:
    """A thread for each worker that hands it one request at a time; idle workers are used before new ones start."""

    def __init__(self, num_workers: int) -> None:
        self.threads = ThreadPoolExecutor(num_workers, thread_name_prefix="jointmae-read")
        self.idle: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        self.workers = [WorkerProcess()]
        self.idle.put(self.workers[0])
        self.num_workers, self.num_requests = num_workers, 0

    def submit(self, request: Request) -> Future[Cloud | DataError]:
        self.num_requests += 1
        if len(self.workers) < self.num_workers and self.num_requests > FILES_PER_WORKER * len(self.workers):
            self.workers.append(WorkerProcess())
            self.idle.put(self.workers[-1])
        return self.threads.submit(self._read, request)

    def _read(self, request: Request) -> Cloud | DataError:
        worker = self.idle.get()
        try:
            answer = worker.read({**vars(request), "path": os.path.abspath(request.path)})
        finally:
            self.idle.put(worker)
        if isinstance(answer, tuple):
            return Cloud(*answer)
        return DataError(str(request), answer["item"], answer["what"])

    def close(self) -> None:
        """Ends the workers, also those that are reading."""
        for worker in self.workers:
            worker.cancel()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers:
            worker.stop()
