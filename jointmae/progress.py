"""What a user sees while a run goes on: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

_LIVE_SECONDS = 0.5  # before the live line is drawn again: drawing takes about a millisecond
_PLAIN_SECONDS = 5.0  # between plain lines


@dataclass(frozen=True)
class Snapshot:
    """The state of training at one step."""

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss_3d: float
    loss_2d: float
    loss_cross: float
    lr: float
    clouds_per_second: float
    seconds_left: float  # infinite where it is not known
    memory_bytes: int

    def line(self) -> str:
        """One line of at most about 130 characters."""
        return (
            f"epoch {self.epoch + 1}/{self.num_epochs}  step {self.step}/{self.num_steps}  "
            f"L_3D {self.loss_3d:.4f}  L_2D {self.loss_2d:.4f}  L_3D-2D {self.loss_cross:.4f}  lr {self.lr:.1e}  "
            f"{self.clouds_per_second:.0f} clouds/s  {self.memory_bytes / 2**30:.1f} GiB  "
            f"ETA {duration(self.seconds_left)}"
        )


def duration(seconds: float) -> str:
    """1:02:03, 2:03, or ? where it is not known."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How long steps take: the mean of all those of this process but for the first two, which compile and warm up.

    All that happens between steps counts too: checkpoints, diagnostics.
    """

    _UNCOUNTED = 2

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps, self._from = 0, clock()

    def step(self) -> None:
        """A step has ended."""
        self._steps += 1
        if self._steps == self._UNCOUNTED:
            self._from = self._clock()

    def seconds_for(self, num_steps: int) -> float:
        """What so many more steps will take; infinite while that cannot be said."""
        counted = self._steps - self._UNCOUNTED
        if num_steps == 0:
            return 0.0
        return (self._clock() - self._from) / counted * num_steps if counted > 0 else float("inf")


class Progress:
    """Shows snapshots; a context manager, so that an exception leaves the terminal as it was."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last = -float("inf")

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot, force: bool = False) -> None:
        """The live line, drawn again, or a plain one, if the last is a while ago (or if forced)."""
        now = time.monotonic()
        due = force or now - self._last >= (_LIVE_SECONDS if self._live else _PLAIN_SECONDS)
        if due:
            self._last = now
        if self._live:
            self._live.update(Text(snapshot.line()), refresh=due)
        elif due:
            with contextlib.suppress(OSError):  # a pipe's reader has left, a log's disk is full: no reason to end a run
                print(snapshot.line(), flush=True)
