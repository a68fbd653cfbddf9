"""Processes that train one model together, as `torchrun` starts them. Without it there is one, and nothing is sent.

Every process holds all weights and computes its share of each batch; PyTorch's DistributedDataParallel adds up the
gradients. What the processes have to agree on besides, a few numbers a step, goes through `World`. A collective
waits for ever for a process that is gone, so each counts aloud in torchrun's store and listens to the others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jointmae.errors import UsageError, WorkerError

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 6.0  # a process that is silent for so long is gone: the others leave within 10 s


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    def share(self, ids: Tensor) -> Tensor:
        """What this process has to do of a batch, int64 [B]: all shares in the order of the ranks make up the batch."""
        return ids[shares(len(ids), self.size)[self.rank]]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def most(self, values: Tensor) -> Tensor:
        """The largest over all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values


def shares(count: int, size: int) -> list[slice]:
    """`count` things shared out among `size` processes: in order, and of the same number but for one."""
    return [slice(rank * count // size, (rank + 1) * count // size) for rank in range(size)]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that `torchrun` started together, for as long as this is entered.

    The keys of a restart have a prefix of their own: what the attempt before left in the store is not taken for the
    present one's. Raises UsageError if only part of what torchrun sets is there.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    there = [name for name in names if name in os.environ]
    if not there:
        yield World()
        return
    if len(there) < len(names):
        missing = ", ".join(name for name in names if name not in there)
        raise UsageError(f"{there[0]} is set and {missing} not: start with torchrun, or unset it")
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    hosts = world.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(world, hosts), rank=world.rank, world_size=world.size)
    try:
        with Heartbeat(_store(world), world):
            yield world
    finally:
        dist.destroy_process_group()


def _store(world: World, hosts: bool = False) -> Any:
    """A connection of its own to the store that all processes of this attempt share."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.TCPStore(address, port, world.size, is_master=hosts, wait_for_workers=False)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"jointmae/attempt-{attempt}", store)  # type: ignore[attr-defined]


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turns what a collective says when another process is gone into a WorkerError."""
    try:
        yield
    except RuntimeError as error:  # of gloo, which has no class of its own, and of NCCL
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise WorkerError(f"another process of this run has ended ({str(error).splitlines()[0]})") from error


class Heartbeat:
    """While entered, counts aloud in the store, and ends this process with code 7 when another one stops counting.

    A thread, because the main one may wait in a collective for whoever is gone; that is also why it can only end the
    process, not raise. A process that has left in good order says so, and is not missed.
    """

    def __init__(self, store: Any, world: World) -> None:
        self._store, self._world = store, world
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        count, now = 0, time.monotonic()
        heard = {rank: (b"", now) for rank in others}
        try:
            while not self._left.wait(BEAT_SECONDS):
                count += 1
                self._say(str(count))
                for rank in others:
                    heard[rank] = self._listen(rank, *heard[rank])
            self._say("left")
        except RuntimeError as error:  # the store is gone, and with it who started us
            if not self._left.is_set():
                self._give_up(f"torchrun's store does not answer ({str(error).splitlines()[0]})")

    def _say(self, word: str) -> None:
        self._store.set(f"alive/{self._world.rank}", word)

    def _listen(self, rank: int, before: bytes, since: float) -> tuple[bytes, float]:
        key, now = f"alive/{rank}", time.monotonic()
        word = self._store.get(key) if self._store.check([key]) else b""
        if word != before or word == b"left":
            return word, now
        if now - since > PATIENCE_SECONDS:
            self._give_up(f"process {rank} of this run has not been heard of for {PATIENCE_SECONDS:g} s")
        return before, since

    def _give_up(self, why: str) -> None:
        print(f"error: {why}; the same command resumes", file=sys.stderr, flush=True)
        os._exit(WorkerError.exit_code)
