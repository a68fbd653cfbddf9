"""What a user sees while a run goes on: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
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
    losses: dict[str, float]  # by what they are called here
    lr: float
    clouds_per_second: float
    seconds_left: float  # infinite where it is not known
    memory_bytes: int

    def line(self) -> str:
        """One line of at most about 130 characters."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
        return (
            f"epoch {self.epoch + 1}/{self.num_epochs}  step {self.step}/{self.num_steps}  {losses}  lr {self.lr:.1e}  "
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


class FileProgress:
    """A bar over files on a terminal, a plain line every few seconds elsewhere; a context manager."""

    def __init__(self, total: int, done: int = 0, bad: int = 0) -> None:
        """`done` files, `bad` of them unreadable, were finished before."""
        self._total, self._done, self._bad = total, done, bad
        self._first, self._begin = done, time.monotonic()
        self._last = -float("inf")
        console = Console(file=sys.stdout, highlight=False)
        columns = (BarColumn(), TextColumn("{task.description}", markup=False))
        # drawn by this thread alone: processes are forked while it is shown
        self._bar = Bar(*columns, console=console, auto_refresh=False) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=done) if self._bar else None

    def __enter__(self) -> FileProgress:
        if self._bar:
            self._bar.start()
        if self._done:
            self._say(f"going on: {self._done:,} of {self._total:,} files are done")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._show()
            self._bar.stop()

    def advance(self, bad: bool = False) -> None:
        """One more file is done."""
        self._done += 1
        self._bad += bad
        if time.monotonic() - self._last >= (_LIVE_SECONDS if self._bar else _PLAIN_SECONDS):
            self._show()

    def line(self) -> str:
        """Files, files a second of this process, the time left, and files that could not be read."""
        here = self._done - self._first
        pace = here / max(time.monotonic() - self._begin, 1e-9)
        left = duration((self._total - self._done) / pace if here else float("inf"))
        bad = f"  {self._bad:,} bad" if self._bad else ""
        return f"{self._done:,}/{self._total:,} files  {pace:.0f} files/s  ETA {left}{bad}"

    def _show(self) -> None:
        self._last = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=self.line(), completed=self._done, refresh=True)
        else:
            self._say(self.line())

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a pipe's reader has left, a log's disk is full: no reason to end the work
            if self._bar:
                self._bar.console.print(line)
            else:
                print(line, flush=True)
