"""Several runs of one downstream task, one after the other, and what they come to together."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from jointmae import encoders, trainer
from jointmae.config import DownstreamConfig, to_dict
from jointmae.distributed import World
from jointmae.downstream.task import DownstreamTask
from jointmae.errors import CheckpointError
from jointmae.files import to_json, write_atomically
from jointmae.run_folder import data_name, environment
from jointmae.text import markdown_table, spoken

Results = list[dict[str, Any]]
Config = TypeVar("Config", bound=DownstreamConfig)


class Estimate(NamedTuple):
    """A number over several runs."""

    mean: float
    std: float | None  # None for one run
    runs: int

    def __str__(self) -> str:
        """In percent, as in "91.2 ± 0.4"."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def train_runs(config: Config, make: Callable[[Config, torch.device], DownstreamTask]) -> int:
    """Trains `--runs` times, or goes on; prints and writes the result. Returns the exit code."""
    parent = Path(config.out) if config.out else default_folder(config)
    with trainer.session(config) as (device, world):
        code, results = train_seeds(config, parent, device, world, make)
        if results:
            publish(config, parent, [results])
        return code


def default_folder(config: DownstreamConfig) -> Path:
    """runs/<command>-<encoder>-<data>."""
    command = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(config).__name__.removesuffix("Config")).lower()
    encoder = encoders.name_of(config.checkpoint, config.preset)
    return Path("runs") / f"{command}-{encoder}-{data_name(config)}"


def train_seeds(
    config: Config,
    parent: Path,
    device: torch.device,
    world: World,
    make: Callable[[Config, torch.device], DownstreamTask],
) -> tuple[int, Results]:
    """The exit code and, in the leading process and if all are done, the results of runs in `parent`/seed-<n>."""
    folders = []
    for seed in range(config.seed, config.seed + config.runs):
        folder = parent / f"seed-{seed}"
        one = replace(config, seed=seed, out=str(folder))
        code = trainer.run(lambda one=one: make(one, device), world)  # type: ignore[misc]
        if code:
            return code, []
        folders.append(folder)
    done = config.evaluate and not config.dry_run
    return 0, [read_result(folder) for folder in folders] if done and world.leads else []


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished run has written. Raises CheckpointError where it has not."""
    try:
        record: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'result.json'}: cannot be read ({error}); remove {folder}") from error
    return record


def summarize(results: Results) -> dict[str, Estimate]:
    """Each test score over the runs."""
    found = {}
    for name in results[0]["test"]:
        values = [result["test"][name] for result in results]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[name] = Estimate(statistics.fmean(values), std, len(values))
    return found


def publish(config: DownstreamConfig, parent: Path, groups: Sequence[Results]) -> None:
    """Prints the table, a row for each group of runs; writes `result.json`, `report.html` and --json."""
    from jointmae.report.downstream import write_report

    record = {
        "task": groups[0][0]["task"],
        "rows": [
            {
                "setting": results[0].get("setting"),
                "summary": {name: estimate._asdict() for name, estimate in summarize(results).items()},
                "runs": results,
            }
            for results in groups
        ],
        "config": to_dict(config),
        "environment": environment(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    print(f"\n{table(groups)}\nreport    {parent / 'report.html'}", flush=True)
    write_atomically(parent / "result.json", to_json(record))
    write_report(parent, groups)
    if config.json:
        write_atomically(Path(config.json), to_json(record))


def table(groups: Sequence[Results]) -> str:
    """One row for each group of runs, as Markdown: scores in percent, and all that decides them."""
    rows = [row(results) for results in groups]
    names = list(dict.fromkeys(name for one in rows for name in one))
    return markdown_table(names, [[one.get(name, "") for name in names] for one in rows])


def row(results: Results) -> dict[str, str]:
    """The cells of a group of runs by the names of their columns."""
    first = results[0]
    cells = {"data": first["data"], "encoder": first["encoder"]}
    cells |= {"setting": first["setting"]} if "setting" in first else {}
    cells |= {spoken(name): str(estimate) for name, estimate in summarize(results).items()}
    epochs = "/".join(dict.fromkeys(str(result["epoch"]) for result in results))
    cells |= {"runs": str(len(results)), "epoch": f"{first['selection']}: {epochs} of {first['epochs']}"}
    known = ("augmentation", "pooling", "sampling", "num_points", "votes")
    return cells | {name.replace("num_", ""): str(first[name]) for name in known if name in first}
