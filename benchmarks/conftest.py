"""Fixtures of `pytest benchmarks/`, and what it prints and writes.

`--quick` takes seconds a file; `--results FILE` adds this run to a JSON file, a list of runs: machine, commit, versions
and measured ceilings at the head of each, then a row for each candidate on each workload (`timing.Row`). The file is
written after every workload, so that a run that is killed leaves what it had. `-k cuda` or `-k cpu` is one device.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.machine import add_run, ceilings, describe_run
from benchmarks.peers import why_missing
from benchmarks.timing import Compare, Row

ROWS = pytest.StashKey[list[Row]]()
THREADS = pytest.StashKey[int]()
HEAD = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jointmae")
    group.addoption("--quick", action="store_true", help="few rounds and no large workloads")
    group.addoption("--results", metavar="FILE", type=Path, help="add the measured rows to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.stash[THREADS] = torch.get_num_threads()  # before any rival is imported


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.manual_seed(0)
    return torch.device(request.param)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def compare(request: pytest.FixtureRequest, device: torch.device, quick: bool) -> Compare:
    parameters = {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in request.node.callspec.params.items()
        if name != "device"
    }

    def report(rows: list[Row]) -> None:
        request.config.stash[ROWS].extend(rows)
        _write(request.config)

    return Compare(device, request.config.stash[THREADS], quick, parameters, report)


def _write(config: pytest.Config) -> None:
    """Puts this run last in the results file, in place of what an earlier workload of it wrote."""
    path, rows = config.getoption("--results"), config.stash[ROWS]
    if path is None:
        return
    threads = config.stash[THREADS]
    head = config.stash.setdefault(HEAD, describe_run(threads))
    limits = {name: asdict(ceilings(torch.device(name), threads)) for name in dict.fromkeys(row.device for row in rows)}
    add_run(path, {**head, "ceilings": limits, "missing": why_missing, "rows": [asdict(row) for row in rows]})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("times")
    for (workload, device), found in groupby(rows, key=lambda row: (row.workload, row.device)):
        for i, row in enumerate(found):
            if i == 0:
                floor = "" if row.floor_ms is None else f"floor {row.floor_ms:.4g} ms"
                graph = "" if row.graph_ms is None else f", ours as a CUDA graph {row.graph_ms:.4g} ms"
                terminalreporter.line(f"{workload}  [{device}, {config.stash[THREADS]} threads] {floor}{graph}")
            terminalreporter.line("  " + _line(row))
    if config.getoption("--results") is not None:
        terminalreporter.line(f"added {len(rows)} rows to {config.getoption('--results')}")


def _line(row: Row) -> str:
    if row.median_ms is None:
        return f"{row.candidate:28} {row.agreement}"
    numbers = ((row.over_floor, "x floor"), (row.gb_per_s, "GB/s"), (row.gflop_per_s, "GFLOP/s"))
    rates = " ".join(" " * (11 + len(unit)) if n is None else f"{n:10.2f} {unit}" for n, unit in numbers)
    return f"{row.candidate:28} {row.median_ms:10.4f} ms x{row.slower:7.2f} {rates}  {row.agreement}"
