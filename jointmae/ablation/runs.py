"""Train what a table asks for, one run after the other, and probe each; what is done is not done again.

A run lies in <out>/<what sets it apart>/seed-<n>, so that a row that two tables share is trained once. Beside its files
are `svm-<set>.json`, one for each set that it was probed on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointmae import data
from jointmae.ablation.tables import Row, Table
from jointmae.config import RESUMABLE_CHANGES, TrainConfig, to_dict
from jointmae.data import PointClouds
from jointmae.device import choose_device
from jointmae.errors import DataError, UsageError
from jointmae.files import make_folder, to_json, write_atomically
from jointmae.model import JointMAE
from jointmae.pretraining import train
from jointmae.probe import ENOUGH_LABELS, ProbeResult, can_probe, linear_probe
from jointmae.run_folder import environment
from jointmae.train import parse_args

POOLING = "mean+max"
"""Of the numbers in the table; svm-<set>.json has all."""


@dataclass(frozen=True)
class Score:
    """What one run is worth on one set."""

    row: int
    seed: int
    data: str  # the set's title
    accuracy: float  # on test, read once
    accuracy_cv: float  # by cross-validation on train
    C: float


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: int
    seed: int
    config: TrainConfig
    is_trained: bool

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.config.out)


class Stopped(Exception):
    """A run was stopped by a signal; `exit_code` is what the command ends with."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def plan(table: Table, options: Sequence[str], seeds: Sequence[int], out: Path) -> list[Run]:
    """All runs, seed by seed, so that a table can be read early. Raises UsageError where two rows are the same run."""
    base = _parse(options, 0, out)
    runs = []
    for seed in seeds:
        for number, row in enumerate(table.rows):
            config = _parse([*options, *row.options], seed, out)
            folder = out / _what_differs(config, base, row) / f"seed-{seed}"
            runs.append(Run(number, seed, dataclasses.replace(config, out=str(folder)), row.is_trained))
    folders = [run.folder for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UsageError(f"two rows would be the same run, {twice.parent.name}: change one of them")
    return runs


def score(runs: Sequence[Run], sets: Sequence[str]) -> Iterator[Score]:
    """The scores of each run in turn, trained first where that has not been done. Raises Stopped, DataError."""
    pairs = [_train_and_test(name) for name in sets]
    for i, run in enumerate(runs, 1):
        kind = run.folder.parent.name
        print(f"[{i}/{len(runs)}] {kind}, seed {run.seed}", flush=True)
        if run.is_trained and (code := train(run.config)):
            raise Stopped(code)
        model = None
        for train_clouds, test_clouds in pairs:
            file = run.folder / f"svm-{train_clouds.title}.json"
            key = _key(run, train_clouds)
            results = _read(file, key)
            if results is None:
                model = model or _encoder(run)
                results = linear_probe(model, train_clouds, test_clouds)
                make_folder(run.folder)
                record = {"key": key, "results": [dataclasses.asdict(result) for result in results]}
                write_atomically(file, to_json({**record, "environment": environment()}))
            chosen = next(result for result in results if result.pooling == POOLING)
            print(f"    {train_clouds.title}: {chosen.accuracy:.1%} (cross-validation {chosen.accuracy_cv:.1%})")
            yield Score(run.row, run.seed, train_clouds.title, chosen.accuracy, chosen.accuracy_cv, chosen.C)


def _parse(options: Sequence[str], seed: int, out: Path) -> TrainConfig:
    return parse_args([*options, "--seed", str(seed), "--out", str(out), "--no-evaluate"])


def _what_differs(config: TrainConfig, base: TrainConfig, row: Row) -> str:
    """A folder's name: the fields in which a run differs from the options that all have."""
    if not row.is_trained:
        return "untrained"
    here, there = to_dict(config), to_dict(base)
    names = [(name, here["model"][name], there["model"][name]) for name in here["model"]]
    names += [(name, here[name], there[name]) for name in here if name not in ("model", "seed")]
    return ",".join(f"{name}={_plain(new)}" for name, new, old in names if new != old) or "as-it-is"


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value).replace("/", "_")


def _train_and_test(name: str) -> tuple[PointClouds, PointClouds]:
    if not {"train", "test"} <= set(data.splits_of(name)):
        raise DataError(name, "", "a linear SVM needs a train and a test split: leave it out of --probe")
    clouds = data.load(name, ("train",)), data.load(name, ("test",))
    if not can_probe(*clouds):
        raise DataError(name, "labels", f"got too few, wanted {ENOUGH_LABELS}")
    return clouds


def _key(run: Run, clouds: PointClouds) -> dict[str, Any]:
    """What a kept result depends on."""
    config = {name: value for name, value in to_dict(run.config).items() if name not in RESUMABLE_CHANGES}
    return {"config": config, "is_trained": run.is_trained, "data_sha256": clouds.sha256}


def _read(file: Path, key: dict[str, Any]) -> list[ProbeResult] | None:
    """What is kept of the same probe."""
    try:
        record = json.loads(file.read_text("utf-8"))
        return [ProbeResult(**result) for result in record["results"]] if record["key"] == key else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        print(f"note: {file} cannot be read ({error}); probed again", flush=True)
        return None


def _encoder(run: Run) -> JointMAE:
    device = choose_device(run.config.device)
    if not run.is_trained:
        return JointMAE(run.config.model, seed=run.seed).to(device).eval()
    return JointMAE.from_pretrained(str(run.folder)).to(device)
