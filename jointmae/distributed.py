"""Processes that train one model together, as `torchrun` starts them. Without it there is one, and nothing is sent.

Every process computes its share of each batch; `jointmae.parallel` joins their gradients, and holds weights whole or in
shards. What the processes have to agree on besides, a few numbers a step, goes through `World`. A collective
waits for ever for a process that is gone, so each counts aloud in torchrun's store and listens to the others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jointmae.errors import UsageError, WorkerError

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 6.0  # a process that is silent for longer is gone: the others leave within 10 s
LAST_WORDS_SECONDS = 1.5  # for writing down why; a disk may be stuck as well
START_SECONDS = 300.0  # so long does the first process (rank 0) wait for all others to come


@dataclass
class World:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1
    on_loss: Callable[[str], None] | None = field(default=None, compare=False, repr=False)
    """Called with the reason, in a thread of its own, just before this process ends because another one is gone."""

    @property
    def leads(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    def share(self, ids: Tensor) -> Tensor:
        """What this process has to do of a batch, int64 [B]: all shares in the order of the ranks make up the batch."""
        return ids[share_of(len(ids), self.rank, self.size)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def most(self, values: Tensor) -> Tensor:
        """The largest over all processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def meet(self) -> None:
        """Waits until every process is here."""
        self.most(torch.zeros(()))

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of every machine does what is inside before the others of that machine do."""
        first = os.environ.get("LOCAL_RANK", str(self.rank)) == "0"
        if not first:
            self.meet()
        yield
        if first:
            self.meet()

    def ignore_termination(self) -> None:
        """For a process that is about to end and has to say why: among several, SIGTERM no longer stops it."""
        if self.size > 1:
            _ignore_termination()

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values


def share_of(count: int, rank: int, size: int) -> slice:
    """What process `rank` of `size` does of `count` things: shares follow each other, and differ by one at the most."""
    return slice(rank * count // size, (rank + 1) * count // size)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that `torchrun` started together, for as long as this is entered.

    Raises UsageError if only part of what torchrun sets is there, or what cannot be.
    """
    world = _world_of_environment()
    if world is None:
        yield World()
        return
    hosts = world.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    on_gpu = device.type == "cuda"
    with lost_processes_named():
        store, pulse = _store(world, hosts), _store(world)  # two connections: who waits for a key keeps others waiting
        prefix = f"jointmae/{name_of_this_start(dist.PrefixStore('jointmae', store), world)}"  # type: ignore[attr-defined]
        store, pulse = dist.PrefixStore(prefix, store), dist.PrefixStore(prefix, pulse)  # type: ignore[attr-defined]
    with Heartbeat(pulse, world):
        with lost_processes_named():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",  # a few numbers a step are on the CPU on any machine
                store=store,
                rank=world.rank,
                world_size=world.size,
                device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
            )
        yield world
        dist.destroy_process_group()  # not after a failure: it may wait for the others, who wait for this process


def _world_of_environment() -> World | None:
    """What torchrun's variables say; None without them."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    there = [name for name in names if name in os.environ]
    if not there:
        return None
    if len(there) < len(names):
        missing = ", ".join(name for name in names if name not in there)
        raise UsageError(f"{there[0]} is set and {missing} not: start with torchrun, or unset it")
    rank, size, port = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not all(text.isdecimal() for text in (rank, size, port)) or int(rank) >= int(size):
        got = f"RANK={rank} WORLD_SIZE={size} MASTER_PORT={port}"
        raise UsageError(f"wanted numbers, and RANK below WORLD_SIZE, got {got}: start with torchrun, or unset them")
    return World(int(rank), int(size))


def _store(world: World, hosts: bool = False) -> Any:
    """A connection to the store that all processes share."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, world.size, is_master=hosts, wait_for_workers=False)  # type: ignore[attr-defined]


def name_of_this_start(store: Any, world: World) -> str:
    """A name that all processes have now, and that no earlier start of them had: the store still holds what that left.

    torchrun's count of restarts is no such name: of several machines each counts its own. The first process makes up
    the name; the others ask for it by one that they make up, so that an old answer is never taken for the new one.
    """
    mine = uuid.uuid4().hex
    if not world.leads:
        store.set(f"asks/{world.rank}", mine)
        name: str = store.get(f"answer/{mine}").decode()
        store.set(f"{name}/knows/{world.rank}", "yes")
        return name
    missing, deadline = set(range(1, world.size)), time.monotonic() + START_SECONDS
    while missing:
        for rank in missing:
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", mine)
        missing = {rank for rank in missing if not store.check([f"{mine}/knows/{rank}"])}
        if time.monotonic() > deadline:
            raise WorkerError(f"process {min(missing)} of this run has not come within {START_SECONDS:g} s")
        time.sleep(0.01)
    return mine


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turns what a collective says when another process is gone into a WorkerError."""
    try:
        yield
    except RuntimeError as error:  # of gloo, which has no class of its own, and of NCCL
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        _ignore_termination()
        raise WorkerError(f"another process of this run has ended ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """What happened, without the place in gloo's source and its good wishes."""
    return re.sub(r"\[/\S+\] ", "", str(error).splitlines()[0]).partition(". This is typically")[0]


def _ignore_termination() -> None:
    """Torchrun sends SIGTERM to all others as soon as one process has ended, often before they could say a word."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Heartbeat:
    """While entered, counts aloud in the store, and ends this process with code 7 when another one stops counting.

    A thread, because the main one may wait in a collective for whoever is gone; that is also why it can only end the
    process, not raise. A process that has left in good order says so, and is not missed; one that has failed falls
    silent. Silence is measured in this process's own beats: one that was itself suspended has missed nobody.
    """

    def __init__(self, store: Any, world: World) -> None:
        self._store, self._world = store, world
        self._ended = threading.Event()
        self._failed = False
        self._heard: dict[int, tuple[bytes, int]] = {}  # by rank: its last word, and our beats since then
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = kind is not None
        self._ended.set()
        self._thread.join(PATIENCE_SECONDS)  # a store that does not answer keeps nobody

    def _run(self) -> None:
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        count = 0
        try:
            while not self._ended.wait(BEAT_SECONDS):
                count += 1
                self._say(str(count))
                for rank in others:
                    self._listen(rank)
            if not self._failed:
                self._say("left")
        except RuntimeError as error:  # the store is gone, and with it who started us
            if not self._ended.is_set():
                self._give_up(f"torchrun's store does not answer ({_reason(error)})")

    def _say(self, word: str) -> None:
        self._store.set(f"alive/{self._world.rank}", word)

    def _listen(self, rank: int) -> None:
        key = f"alive/{rank}"
        word = self._store.get(key) if self._store.check([key]) else b""
        before, beats = self._heard.get(rank, (b"", 0))
        alive = word != before or word in (b"", b"left")  # no word yet: it is still starting
        beats = 0 if alive else beats + 1
        self._heard[rank] = word, beats
        if beats * BEAT_SECONDS > PATIENCE_SECONDS:
            self._give_up(f"process {rank} of this run has not been heard of for {PATIENCE_SECONDS:g} s")

    def _give_up(self, why: str) -> None:
        last_words = threading.Thread(target=self._say_why, args=(why,), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        os._exit(WorkerError.exit_code)

    def _say_why(self, why: str) -> None:
        print(f"error: {why}; the same command resumes", file=sys.stderr, flush=True)
        if self._world.on_loss is not None:
            self._world.on_loss(why)
