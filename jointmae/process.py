"""What the commands of this package set for their own process, before torch is loaded. The library sets nothing."""

from __future__ import annotations

import os


def prepare() -> None:
    """Threads that do not spin while they are idle, unless the user wants it otherwise.

    By default torch's threads spin between parallel ops, in the way of our own and of every other process: with a busy
    neighbour a training step took 10 times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
