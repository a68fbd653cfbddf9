"""What the numbers of a run say, in words that the report and the model card share; ties and defeats are said too."""

from __future__ import annotations

import json
import math
import re
import shlex
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jointmae import __version__
from jointmae.config import TrainConfig
from jointmae.data import furniture
from jointmae.evaluate import Evaluation, ProbePair, ReconstructionLosses
from jointmae.probe import ProbeResult

HEADLINE_POOLING = "mean+max"  # fixed beforehand: the best of three on the test split would be chosen by the test split


class Row(NamedTuple):
    """One pooling of one set: the trained encoder beside the untrained one."""

    pooling: str
    trained: ProbeResult
    untrained: ProbeResult

    @property
    def points(self) -> float:
        """By how many percentage points the trained encoder is better."""
        return 100 * (self.trained.accuracy - self.untrained.accuracy)


def rows(pair: ProbePair) -> list[Row]:
    """The poolings of a probe, in their order."""
    return [Row(t.pooling, t, u) for t, u in zip(pair.trained, pair.untrained, strict=True)]


def headline_row(pair: ProbePair) -> Row:
    """The pooling that is quoted where there is room for one."""
    found = rows(pair)
    return next((row for row in found if row.pooling == HEADLINE_POOLING), found[-1])


def winner(row: Row) -> str:
    """Who is ahead, and by how much."""
    if row.points == 0:
        return "level"
    return f"{'trained' if row.points > 0 else 'untrained'} +{abs(row.points):.1f}"


def margin(row: Row) -> float:
    """Half the width of the 95% interval of the trained encoder's accuracy, in percentage points."""
    n, successes = row.trained.num_test, row.trained.accuracy * row.trained.num_test
    p = (successes + 2) / (n + 4)  # Agresti and Coull: an accuracy of 0 or 1 is not certain either
    return 100 * 1.96 * math.sqrt(p * (1 - p) / (n + 4))


def verdict(pair: ProbePair) -> str:
    """A sentence or two on what the probe shows and what it does not."""
    row = headline_row(pair)
    n = row.trained.num_test
    if row.points > 0:
        said = f"training gained {row.points:.1f} points over the same encoder untrained."
    elif row.points == 0:
        said = "training neither gained nor lost anything over the same encoder untrained."
    else:
        said = f"the untrained encoder is {-row.points:.1f} points better: by this measure the training did not help."
    said = f"With {row.pooling} pooling, the one quoted whatever comes out, {said}{_other_poolings(pair)}"
    interval = f"the 95% interval about ±{margin(row):.0f} points"
    doubt = f" With {n:,} test clouds, one cloud is {100 / n:.1f} points and {interval}"
    if 0 < abs(row.points) < margin(row):
        return f"{said}{doubt}: this difference alone does not settle it."
    return f"{said}{doubt}."


def _other_poolings(pair: ProbePair) -> str:
    """What the poolings that are not quoted say, where one of them disagrees with the quoted one."""
    quoted = headline_row(pair)
    others = [row for row in rows(pair) if row.points * quoted.points <= 0 and row.pooling != quoted.pooling]
    return "".join(f" {row.pooling.capitalize()} pooling says otherwise ({winner(row)})." for row in others)


def result_line(evaluation: Evaluation) -> str:
    """The run in one line."""
    parts = [
        f"Linear SVM on {pair.data}: {percent(row.trained.accuracy)} with the trained encoder, "
        f"{percent(row.untrained.accuracy)} with the same encoder untrained."
        for pair in evaluation.probes
        for row in [headline_row(pair)]
    ]
    return " ".join([*parts, loss_line(evaluation.losses)])


def loss_line(losses: ReconstructionLosses) -> str:
    """L_3D beside the trivial loss."""
    where = "Held-out" if losses.held_out else "Training-set"
    against = f"{losses.against_trivial.lower()} the best constant group's {losses.trivial_loss_3d:.4f}"
    return f"{where} L_3D is {losses.loss_3d:.4f}, {against} ({losses.num_clouds:,} clouds)."


def percent(fraction: float) -> str:
    """0.7262 as "72.6%"."""
    return f"{fraction:.1%}"


def to_html(text: str) -> str:
    """`text` escaped, with the indices of losses set low: L_3D."""
    return re.sub(r"L_(3D-2D|3D|2D)", r"L<sub>\1</sub>", escape(text))


def attribution(config: TrainConfig) -> str:
    """Where the authors of the data are named, as far as we know."""
    if furniture.NAME not in config.data:
        return ""
    return f"The authors of the embedded {furniture.NAME} set are named in jointmae/data/FURNITURE_LICENSE.md."


def data_names(config: TrainConfig) -> list[str]:
    """What was trained on, without folders."""
    return [Path(name).name for name in config.data]


def train_command(env: dict[str, Any]) -> str:
    """The command that began this run and resumes it; empty where it was started from Python."""
    command = [str(word) for word in env.get("command", [])]
    if not command or Path(command[0]).parent.name != "jointmae" or Path(command[0]).name != "train.py":
        return ""
    return shlex.join(["python", "-m", "jointmae.train", *command[1:]])


def probe_command(folder: Path, config: TrainConfig) -> str:
    """The command that probes the encoder of this run."""
    return shlex.join(["python", "-m", "jointmae.linear_svm", "--checkpoint", str(folder), "--data", config.data[0]])


def date(stamp: str) -> str:
    """2026-11-24T07:24:35+0000 without seconds."""
    return stamp[:16].replace("T", " ") + (f" {stamp[19:]}" if len(stamp) > 19 else "")


def software(env: dict[str, Any]) -> str:
    """Of env.json."""
    return f"jointmae {env.get('jointmae', __version__)}, torch {env.get('packages', {}).get('torch', '?')}"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All lines of a .jsonl file; none if it is not there."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object that the run wrote; empty if it is not there."""
    value: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return value
