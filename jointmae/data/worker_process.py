"""The parent's end of a worker: start it, ask it, and end it when it takes too long."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointmae.data.shapes.limits import MAX_POINTS
from jointmae.data.worker import BASE_SECONDS, LENGTH, seconds_for
from jointmae.errors import WorkerError

COMMAND = [sys.executable, "-m", "jointmae.data.worker"]
START_SECONDS = 60  # it imports NumPy, from a network disk perhaps
_MAX_HEADER_BYTES = 2**20
_DTYPES = {np.dtype(kind).str for kind in (np.float32, np.float64)}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_COPY = "copy it again, and report it if that does not help"


class _Late(Exception):
    """The time for a file is over."""


class _Dead(Exception):
    """The worker has ended."""


class WorkerProcess:
    """One worker, started when first asked and again after it has ended; one thread asks at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._lock = threading.Lock()  # between a start and `cancel`, which comes from another thread

    def read(self, request: dict[str, Any]) -> tuple[NDArray[Any], bool] | dict[str, str]:
        """What `worker` answers: points [N, 3] and whether they are of a mesh, or the item and the text of an error.

        Raises WorkerError where a worker cannot be started.
        """
        self._start()
        limit: float = BASE_SECONDS
        deadline = time.monotonic() + limit
        try:
            self._write(json.dumps(request).encode() + b"\n")
            header = self._read_header(deadline)
            if "num_bytes" in header:
                limit = seconds_for(header["num_bytes"])
                deadline = time.monotonic() + limit
                header = self._read_header(deadline)
            if "what" in header:
                return {"item": str(header["item"]), "what": str(header["what"])}
            return self._read_points(header["shape"], header["dtype"], deadline), bool(header["is_mesh"])
        except _Late:
            self.stop()
            return {"item": "", "what": f"was not read within {limit:.0f} s, and its reader was ended: {_COPY}"}
        except _Dead:
            return {"item": "", "what": f"its reader {_how_it_ended(self.stop())}: {_COPY}"}

    def cancel(self) -> None:
        """Ends the worker for good, also while another thread waits for its answer."""
        with self._lock:
            self._cancelled = True
            if self._process:
                self._process.kill()

    def stop(self) -> int:
        """Ends the worker, leaves no zombie, and gives its exit code; not while another thread waits for its answer."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin and process.stdout
        for pipe in (process.stdin, process.stdout):
            pipe.close()
        try:
            return process.wait(timeout=0.2)  # it may be about to end by itself: the code says why
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _start(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self.stop()
        paths = [os.path.abspath(path) for path in sys.path]
        with self._lock:
            if self._cancelled:
                raise WorkerError("the reading of files was ended")
            self._process = subprocess.Popen(
                COMMAND,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)},
                cwd="/",  # python -m imports from here first: never from a folder of downloaded files
                start_new_session=True,  # Ctrl-C is the parent's
            )
        try:
            self._read_header(time.monotonic() + START_SECONDS)
        except (_Late, _Dead) as error:
            how = _how_it_ended(self.stop())
            raise WorkerError(
                f"a process that reads files {how} at its start: {' '.join(COMMAND)} shows why"
            ) from error

    def _write(self, line: bytes) -> None:
        assert self._process and self._process.stdin
        try:
            self._process.stdin.write(line)
        except BrokenPipeError as error:
            raise _Dead from error

    def _read_header(self, deadline: float) -> dict[str, Any]:
        (length,) = LENGTH.unpack(self._read(bytearray(LENGTH.size), deadline))
        assert length <= _MAX_HEADER_BYTES
        header: dict[str, Any] = json.loads(self._read(bytearray(length), deadline))
        return header

    def _read_points(self, shape: list[int], dtype: str, deadline: float) -> NDArray[Any]:
        assert len(shape) == 2 and 1 <= shape[0] <= MAX_POINTS and shape[1] == 3 and dtype in _DTYPES
        points = np.empty(shape, dtype)
        self._read(points, deadline)
        return points

    def _read(self, into: Any, deadline: float) -> Any:
        """Fills a buffer. Raises _Late after the deadline, _Dead at the end of the answers."""
        assert self._process and self._process.stdout
        answers, rest = self._process.stdout.fileno(), memoryview(into).cast("B")
        readable = select.poll()
        readable.register(answers, select.POLLIN)
        while len(rest):
            if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Late
            count = os.readv(answers, [rest])
            if count == 0:
                raise _Dead
            rest = rest[count:]
        return into


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {member.value: member.name for member in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
