"""A results file as a Markdown table: our time, the fastest peer, and how many times as long it takes.

    python -m benchmarks.table benchmarks/results/FILE.json

A column for each number of threads that was measured; of several runs with the same number the last one counts. The
reference and other ways to call ours are no peers; plain PyTorch in its usual forms is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NOT_PEERS = ("jointmae", "reference", "numba loop, ")


def is_peer(row: dict[str, Any]) -> bool:
    return row["median_ms"] is not None and not row["candidate"].startswith(NOT_PEERS)


def cell(rows: list[dict[str, Any]]) -> str:
    """What one run says of one workload."""
    ours = rows[0]
    if ours["median_ms"] is None:
        return "failed"
    peers = sorted((row for row in rows if is_peer(row)), key=lambda row: row["median_ms"])
    said = f"{ours['median_ms']:.3g} ms"
    if not peers:
        return said
    slower = peers[0]["slower"]
    return f"{said}; {peers[0]['candidate']} **x{slower:.{1 if slower >= 1 else 2}f}**"


def table(runs: list[dict[str, Any]], device: str) -> str:
    """Markdown: a row for each workload, in the order of the runs."""
    by_threads: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run["rows"]:
            if row["device"] == device:
                workloads = by_threads.setdefault(run["threads"], {})
                if row["workload"] in workloads and workloads[row["workload"]][0].get("run") != run["run"]:
                    del workloads[row["workload"]]
                workloads.setdefault(row["workload"], []).append({**row, "run": run["run"]})
    columns = sorted(by_threads, reverse=True)
    names = dict.fromkeys(name for threads in columns for name in by_threads[threads])
    head = " | ".join(f"{threads} thread{'s' * (threads > 1)}" for threads in columns)
    lines = [f"| workload | {head} |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        cells = (cell(by_threads[threads][name]) if name in by_threads[threads] else "" for threads in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print(table(json.loads(options.results.read_text()), options.device))


if __name__ == "__main__":
    main()
