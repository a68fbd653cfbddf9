#!/usr/bin/env python3
"""Training on this machine in numbers, by running the commands that users run.

    python scripts/train_runs.py speed ...    # clouds a second, by preset, precision and compilation
    python scripts/train_runs.py quality ...  # linear SVM of the first file after as much training as fits

Both stop starting runs when --seconds are used up, and write what they have after every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

ROOT = Path(__file__).resolve().parent.parent
# Preset, precision, torch.compile: those that matter most first.
RUNS = [
    ("paper", "bf16", "on"),
    ("paper", "bf16", "off"),
    ("small", "bf16", "on"),
    ("small", "bf16", "off"),
    ("tiny", "bf16", "off"),
    ("paper", "fp32", "off"),
    ("small", "fp32", "off"),
    ("tiny", "fp32", "off"),
    ("paper", "fp32", "on"),
    ("tiny", "bf16", "on"),
]
WARM_UP_STEPS = 20


@dataclass(frozen=True)
class Budget:
    """Wall time that is left; `begin` and `seconds` as of `time.monotonic`."""

    begin: float
    seconds: float

    def left(self) -> float:
        """In seconds."""
        return self.begin + self.seconds - time.monotonic()


def run(*arguments: str, seconds: float) -> str:
    """Runs `python -m ARGUMENTS` in the checkout; returns what went wrong, or nothing."""
    command = [sys.executable, "-m", *arguments]
    print("+", *command[1:], flush=True)
    try:
        subprocess.run(command, cwd=ROOT, timeout=max(seconds, 1), check=True)
    except subprocess.CalledProcessError as error:
        return f"exit code {error.returncode}"
    except subprocess.TimeoutExpired:
        return f"took more than {seconds:.0f} s"
    return ""


def timings(folder: Path) -> dict[str, float] | None:
    """What timings.jsonl says after the first steps, None if it has no such lines.

    Checkpoints and diagnostics are in the mean; the median of its lines is most steps' speed.
    """
    file = folder / "timings.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [line for line in lines if line["step"] > WARM_UP_STEPS]
    if not lines:
        return None
    clouds = sum(line["clouds_per_second"] * line["seconds"] for line in lines)
    return {
        "clouds_per_second": statistics.median(line["clouds_per_second"] for line in lines),
        "mean_clouds_per_second": clouds / sum(line["seconds"] for line in lines),
        "memory_bytes": max(line["memory"] for line in lines),
    }


def speed(args: argparse.Namespace, budget: Budget) -> bool:
    """One row for each of RUNS that there is time for; returns whether all of them went well."""
    rows: list[dict[str, Any]] = []
    for preset, precision, compiled in (chosen for chosen in RUNS if chosen[0] in args.presets):
        if budget.left() < 20:
            break
        folder, begin = args.work / f"{preset}-{precision}-{compiled}", time.monotonic()
        options = {"preset": preset, "precision": precision, "compile": compiled}
        failed = run(
            *("jointmae.train", "--data", *args.data, "--out", str(folder), "--device", args.device),
            *("--max-steps", str(args.steps), "--no-evaluate"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            seconds=min(args.run_seconds, budget.left()),
        )
        if failed and budget.left() < 1:
            break  # the time was up, not the run's fault
        rows.append({
            **options,
            **(timings(folder) or {}),
            "seconds_in_all": round(time.monotonic() - begin, 1),
            "failed": failed,
        })  # fmt: skip
        print(rows[-1], flush=True)
        write(args.out, {"rows": rows, "environment": environment(folder)})
    return not any(row["failed"] for row in rows)


def quality(args: argparse.Namespace, budget: Budget) -> bool:
    """Trains for half of the time, probes the trained and the untrained encoder; returns whether all went well."""
    train = ["jointmae.train", "--preset", args.preset, "--data", *args.data, "--device", args.device, "--no-evaluate"]
    trial, folder = args.work / "trial", args.work / "trained"
    run(*train, "--out", str(trial), "--max-steps", str(args.steps), seconds=budget.left() / 3)
    found = timings(trial)
    if found is None:
        raise SystemExit("train_runs: the trial run gave no timings")
    num_clouds = sum(count(file) for file in args.data)
    epochs = max(1, int(0.5 * budget.left() * found["mean_clouds_per_second"] / num_clouds))
    result: dict[str, Any] = {"preset": args.preset, "epochs": epochs, "clouds": num_clouds, "trial": found}
    begin = time.monotonic()
    options = ["--splits", "train", "--epochs", str(epochs), "--warmup-epochs", str(epochs / 30)]
    result["failed"] = run(*train, *options, "--out", str(folder), seconds=0.7 * budget.left())
    result |= {"training_seconds": round(time.monotonic() - begin, 1), **(timings(folder) or {})}
    result["environment"] = environment(folder)
    write(args.out, result)
    untrained = ["--checkpoint", "random", "--preset", args.preset]
    for name, encoder in (("trained", ["--checkpoint", str(folder)]), ("untrained", untrained)):
        answer = args.work / f"{name}.json"
        where = ["--data", args.data[0], "--device", args.device, "--json", str(answer)]
        failed = run("jointmae.linear_svm", *encoder, *where, seconds=budget.left())
        result["failed"] = result["failed"] or failed
        result[name] = None if failed else json.loads(answer.read_text())["results"]
        write(args.out, result)
    return not result["failed"]


def count(file: str) -> int:
    """The number of clouds in the train split of an .h5 file."""
    with h5py.File(file) as h5:
        return len(h5["train"]["points"])


def environment(folder: Path) -> dict[str, Any]:
    """What the run says of its machine."""
    file = folder / "env.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "quality"))
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs, empty or new")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="paper", help="of `quality`")
    parser.add_argument("--seconds", type=float, default=400, help="to be done in")
    parser.add_argument("--run-seconds", type=float, default=150, help="of one run of `speed`")
    parser.add_argument("--steps", type=int, default=120, help="of one run of `speed`, and of the trial of `quality`")
    parser.add_argument("--presets", nargs="+", default=["paper", "small", "tiny"], help="of `speed`")
    args = parser.parse_args()
    budget = Budget(time.monotonic(), args.seconds)
    args.data = [str(Path(file).resolve()) for file in args.data]
    return 0 if (speed if args.what == "speed" else quality)(args, budget) else 1


if __name__ == "__main__":
    sys.exit(main())
