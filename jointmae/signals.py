"""SIGTERM, SIGINT and SIGUSR1: a run that is asked to stop saves first, and says so with its exit code."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_USR1 = getattr(signal, "SIGUSR1", None)  # not on Windows
_STOP_SIGNALS = [number for number in (signal.SIGTERM, signal.SIGINT, _USR1) if number is not None]


class Stopped(BaseException):
    """The run was asked to stop. No Exception, so that nothing which handles errors takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.name, self.exit_code = signal.Signals(number).name, 128 + number


class StopSignals:
    """While entered, SIGTERM, SIGINT and SIGUSR1 raise Stopped; inside `deferred` only once that block has ended.

    There the same signal again does not wait; another one does, as a scheduler sends SIGTERM some time after SIGUSR1.

    SIGUSR1 is what SLURM sends ahead of a time limit (`--signal=USR1@60`); whoever has taken it before keeps it. The
    handlers found are put back at the end. Outside the main thread, where Python allows none, this does nothing.
    """

    def __init__(self) -> None:
        self.wanted = 0  # the signal that waits for the end of `deferred`: sent to this process, or to another one
        self._noted = 0  # the one that was sent to this process
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
            ours = [number for number in found if number != _USR1 or found[number] == signal.SIG_DFL]
            self._before = {number: signal.signal(number, self._note) for number in ours}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._deferring and number != self._noted:
            self._noted = self._noted or number
            self.wanted = self.wanted or number
            return
        raise Stopped(number)  # asked twice: at once

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What is in this block ends before Stopped is raised, unless the same signal comes twice."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.wanted:
            raise Stopped(self.wanted)
