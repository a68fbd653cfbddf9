"""What is left of a comparison: one JSON with all scores, and where they come from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from jointmae import data
from jointmae.ablation.runs import POOLING, Run, Score
from jointmae.ablation.summary import RowSummary
from jointmae.ablation.tables import Table
from jointmae.config import TrainConfig
from jointmae.errors import UsageError
from jointmae.probe import can_probe
from jointmae.run_folder import environment


def sets_to_probe(config: TrainConfig) -> tuple[str, ...]:
    """Those of --data that have labelled train and test splits. Raises UsageError for none."""
    names = [
        name
        for name in config.data
        if {"train", "test"} <= set(data.splits_of(name))
        and can_probe(data.load(name, ("train",)), data.load(name, ("test",)))
    ]
    if not names:
        raise UsageError("none of --data has labelled train and test splits: give a set that has by --probe")
    return tuple(names)


def record(
    table: Table,
    seeds: Sequence[int],
    options: Sequence[str],
    runs: Sequence[Run],
    scores: Sequence[Score],
    summaries: Sequence[RowSummary | None],
) -> dict[str, Any]:
    """As plain JSON types."""
    rows = [
        {
            "cells": row.cells,
            "options": row.options,
            "paper": row.paper,
            "run": next(run.folder.parent.name for run in runs if run.row == number),
            "summary": summary and dataclasses.asdict(summary),
        }
        for number, (row, summary) in enumerate(zip(table.rows, summaries, strict=True))
    ]
    return {
        "table": table.title,
        "columns": table.columns,
        "reference": table.reference,
        "measure": f"linear SVM on {POOLING} features, C by cross-validation on train; percent of test clouds",
        "options": list(options),
        "seeds": list(seeds),
        "rows": rows,
        "scores": [dataclasses.asdict(score) for score in scores],
        "environment": environment(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
