"""Timing for `pytest benchmarks/`: ours, the reference and every installed peer in one run, so that ratios mean much.

`--quick` takes seconds a file; `--results FILE` adds what was measured to a JSON file.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
MIN_SAMPLE_S = 0.002  # calls shorter than this are timed several at once


@dataclass(frozen=True)
class Row:
    """One candidate on one workload. `slower` is its time over ours."""

    date: str
    commit: str
    workload: str
    device: str
    threads: int
    candidate: str
    median_ms: float
    min_ms: float
    rounds: int
    gb_per_s: float | None
    gflop_per_s: float | None
    slower: float


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jointmae")
    group.addoption("--quick", action="store_true", help="few rounds and no large workloads")
    group.addoption("--results", metavar="FILE", type=Path, help="add the measured rows to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


def peer(module: str) -> ModuleType | None:
    """A rival's module, None where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        return None


@pytest.fixture
def compare(request: pytest.FixtureRequest, device: torch.device, quick: bool) -> Callable[..., None]:
    """See `Compare.__call__`."""
    return Compare(request.config, device, quick)


@dataclass(frozen=True)
class Compare:
    config: pytest.Config
    device: torch.device
    quick: bool

    def __call__(
        self,
        workload: str,
        candidates: dict[str, Callable[..., Any]],
        inputs: Sequence[tuple[Any, ...]],
        *,
        check: Callable[[Any, Any], None] = torch.testing.assert_close,
        num_bytes: float | None = None,
        flops: float | None = None,
    ) -> None:
        """Checks, then times `candidates` on `inputs`; the first candidate is ours and every ratio is to it.

        Each candidate is called with one of `inputs`, in turn, so that no candidate finds its input in the cache.
        `check(result, ours)` must pass for every candidate on the first input. Rounds take all candidates in a shuffled
        order, so that a slow second of the machine falls on all of them. `num_bytes` and `flops` are what the op must
        move and do at least.
        """
        ours, *_ = candidates
        expected = candidates[ours](*inputs[0])
        for call in candidates.values():
            check(call(*inputs[0]), expected)
        samples = self._time(candidates, inputs)
        median = {name: statistics.median(times) for name, times in samples.items()}
        for name, times in samples.items():
            self.config.stash[ROWS].append(
                Row(
                    date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    commit=_commit(),
                    workload=workload,
                    device=_device_name(self.device),
                    threads=torch.get_num_threads(),
                    candidate=name,
                    median_ms=round(1e3 * median[name], 4),
                    min_ms=round(1e3 * min(times), 4),
                    rounds=len(times),
                    gb_per_s=None if num_bytes is None else round(num_bytes / median[name] / 1e9, 2),
                    gflop_per_s=None if flops is None else round(flops / median[name] / 1e9, 2),
                    slower=round(median[name] / median[ours], 3),
                )
            )

    def _time(
        self, candidates: dict[str, Callable[..., Any]], inputs: Sequence[tuple[Any, ...]]
    ) -> dict[str, list[float]]:
        """Seconds a call: a sample a round; one alone for a candidate that by itself uses up the time for all."""
        at_least, at_most, budget = (3, 5, 0.3) if self.quick else (7, 50, 10.0)
        once = {name: self._sample(call, inputs, 0, 1) for name, call in candidates.items()}
        samples: dict[str, list[float]] = {name: [once[name]] if once[name] > budget else [] for name in candidates}
        candidates = {name: call for name, call in candidates.items() if once[name] <= budget}
        calls = {name: max(1, int(MIN_SAMPLE_S / once[name])) for name in candidates}
        order, shuffle = list(candidates), random.Random(0).shuffle
        begin = time.perf_counter()
        for round_ in range(at_most):
            shuffle(order)
            for name in order:
                samples[name].append(self._sample(candidates[name], inputs, round_, calls[name]))
            if round_ + 1 >= at_least and time.perf_counter() - begin > budget:
                break
        return samples

    def _sample(self, call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], first: int, calls: int) -> float:
        self._wait()
        begin = time.perf_counter()
        for i in range(first, first + calls):
            call(*inputs[i % len(inputs)])
        self._wait()
        return (time.perf_counter() - begin) / calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("times")
    for row in rows:
        if row.slower == 1 and row is next(r for r in rows if (r.workload, r.device) == (row.workload, row.device)):
            terminalreporter.line(f"{row.workload}  [{row.device}, {row.threads} threads, {row.commit}]")
        rates = f"{row.gb_per_s or 0:9.2f} GB/s {row.gflop_per_s or 0:9.2f} GFLOP/s"
        terminalreporter.line(f"  {row.candidate:32} {row.median_ms:10.3f} ms {rates}   x{row.slower:.2f}")
    path = config.getoption("--results")
    if path is not None:
        earlier = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps(earlier + [asdict(row) for row in rows], indent=1) + "\n")
        terminalreporter.line(f"added {len(rows)} rows to {path}")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
