"""Runs of several processes for the tests, without torchrun: what torch takes to load is paid for once.

python -m tests.processes    reads a line of JSON for each run, forks its processes, writes their exit codes
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from tests.runs import Outcome


class Launcher:
    """The process that has torch loaded, and forks others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # for what the processes print
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def run(
        self,
        argv: Sequence[str],
        size: int = 1,
        homes: Sequence[Path] = (),
        command: str = "train",
        **settings: float,
    ) -> list[Outcome]:
        """`python -m jointmae.<command>` in `size` processes, in folders `homes` if given; what each left, by rank.

        A single one is not told that there could be others. `settings` are constants of jointmae.trainer.
        """
        said = [self._folder / f"said-{rank}" for rank in range(size)]
        order = {"argv": list(argv), "size": size, "said": list(map(str, said)), "homes": list(map(str, homes))}
        order |= {"settings": settings, "command": command}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        streams = [[path.with_suffix(end).read_text() for end in (".out", ".err")] for path in said]
        return [Outcome(code, *texts) for code, texts in zip(codes, streams, strict=True)]

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


def _serve() -> None:
    import torch
    import torch._dynamo  # it is what takes longest to load, and every optimizer loads it

    from jointmae import cli, train, trainer

    train.parse_args([])  # loads what it needs
    torch.set_num_threads(1)  # a forked process has no other threads

    def command(name: str, settings: dict[str, float]) -> NoReturn:
        for constant, value in settings.items():
            assert hasattr(trainer, constant), constant
            setattr(trainer, constant, value)
        cli.run(import_module(f"jointmae.{name}").main)

    for line in sys.stdin:
        order = json.loads(line)
        order["port"] = free_port()
        pids = [_fork(rank, order, command) for rank in range(order["size"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def _fork(rank: int, order: dict[str, Any], command: Callable[[str, dict[str, float]], NoReturn]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(order["said"][rank] + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if order["size"] > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(order["size"]))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(order["port"]))
    if order["homes"]:
        os.chdir(order["homes"][rank])
    sys.argv = [order["command"], *order["argv"]]
    code = 1
    try:
        command(order["command"], order["settings"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
