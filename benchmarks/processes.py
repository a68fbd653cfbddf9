"""Clouds a second of training in several processes of one machine, beside as many threads in one process.

    python -m benchmarks.processes --json benchmarks/results/processes.json

Every setting is a run of the command itself, in turn with the others; its speed is that of the last lines of
timings.jsonl. Prints the table of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_run

SETTINGS = [(1, 1), (1, 2), (2, 1)]  # processes, threads of each
WARM_LINES = 1  # of timings.jsonl, ten steps each
ROOT = Path(__file__).resolve().parent.parent


def speeds(processes: int, threads: int, options: argparse.Namespace) -> list[float]:
    """Clouds a second of all processes together, a number for each ten steps."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        run = ["--out", f"{folder}/run", "--max-steps", str(options.steps), "--threads", str(threads)]
        model = ["--preset", options.preset, "--batch-size", str(options.batch_size), "--device", "cpu"]
        command = [*(launch if processes > 1 else []), "-m", "jointmae.train", "--no-evaluate", *model, *run]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        lines = map(json.loads, Path(folder, "run/timings.jsonl").read_text().splitlines())
        whole = [line["clouds_per_second"] for line in lines if line["step"] % 10 == 0]
    return whole[WARM_LINES:]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All settings in turn, so that whatever else the machine does meets each of them."""
    found: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(options.rounds):
        for setting in SETTINGS:
            found[setting] += speeds(*setting, options)
            print(f"{setting[0]} x {setting[1]}: {found[setting][-1]:.1f} clouds/s", flush=True)
    return [
        {"processes": processes, "threads": threads, "clouds_per_second": numbers}
        for (processes, threads), numbers in found.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, and the range that half of the numbers lie in."""
    alone = statistics.median(rows[0]["clouds_per_second"])
    lines = ["| processes x threads | clouds/s | against 1 x 1 |", "| --- | --- | --- |"]
    for row in rows:
        low, middle, high = statistics.quantiles(row["clouds_per_second"], n=4)
        setting = f"{row['processes']} x {row['threads']}"
        lines.append(f"| {setting} | {middle:.1f} ({low:.1f} to {high:.1f}) | {middle / alone:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, and keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    parser.add_argument("--steps", type=int, default=50, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.steps < 10 * (WARM_LINES + 1) or options.rounds * (options.steps // 10 - WARM_LINES) < 2:
        parser.error("too few numbers: wanted at least 2 from all rounds")
    rows = measure(options)
    workload = {"preset": options.preset, "batch_size": options.batch_size, "steps": options.steps}
    if options.json is not None:
        run = {**describe_run(max(threads for _, threads in SETTINGS)), **workload, "rows": rows}
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
