"""`python -m jointmae.ablate`: the paper's ablations, baselines and one's own variants, with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jointmae import cli
from jointmae.ablation.tables import TABLES, own
from jointmae.errors import UsageError
from jointmae.limits import require_place

DESCRIPTION = """Train every row of a table with several seeds, probe each with a linear SVM, and print the table.
What stands after -- are options of jointmae.train for all rows:
python -m jointmae.ablate --table 6 -- --data A.h5 B.h5 --epochs 3
The same command again goes on where it was stopped; rows that two tables share are trained once."""


@dataclass(frozen=True)
class AblateConfig:
    """Which rows, seeds and sets."""

    table: Literal["6", "7", "8", "baselines", "own"] = "baselines"
    """Of the paper: 6 (attention), 7 (embeddings, decoder), 8 (cross loss); baselines (untrained, 3D only, joint); own:
    the run as it is beside every --vary."""
    vary: tuple[str, ...] = ()
    """For --table own: options of jointmae.train that make a row, a string for each: "lr=1e-3 num-neighbors=16,8"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every row for each of them."""
    probe: tuple[str, ...] = ()
    """Labelled sets for the linear SVM; empty: those of --data that can serve."""
    out: str = "runs/ablation"
    """Folder of all runs."""
    json: str = ""
    """Also write all scores and the summary to this file."""
    dry_run: bool = False
    """List the runs and stop."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    argv, options = _split(argv)
    config = cli.parse(AblateConfig(), argv, "jointmae.ablate", DESCRIPTION)
    require_valid(config, options)
    table = own(config.vary) if config.table == "own" else TABLES[config.table]
    from jointmae.ablation import runs, summary  # here and below, so that --help does not wait for torch
    from jointmae.ablation.result import record, sets_to_probe
    from jointmae.files import to_json, write_atomically

    planned = runs.plan(table, options, config.seeds, Path(config.out))
    if config.dry_run:
        print("\n".join(f"{run.folder}{'' if run.is_trained else '  (not trained)'}" for run in planned))
        return 0
    scores: list[runs.Score] = []
    code = 0
    try:
        for score in runs.score(planned, config.probe or sets_to_probe(planned[0].config)):
            scores.append(score)
    except runs.Stopped as stop:
        code = stop.exit_code
        print("stopped; the same command goes on", flush=True)
    summaries = summary.summarize(table, scores)
    if scores:
        print(f"\n{table.title}\n\n{summary.markdown(table, summaries)}\n")
    if config.json and not code:
        write_atomically(Path(config.json), to_json(record(table, config.seeds, options, planned, scores, summaries)))
    return code


def require_valid(config: AblateConfig, options: Sequence[str]) -> None:
    """Raises UsageError for options that do not go together, DiskError if --json has nowhere to go."""
    if (config.table == "own") != bool(config.vary):
        raise UsageError('--vary is for --table own, which needs it: --table own --vary "align-cells=2"')
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UsageError(
            f"--seeds must be different numbers from 0 on, got {' '.join(map(str, config.seeds)) or 'none'}"
        )
    for name in ("--seed", "--out", "--evaluate", "--no-evaluate", "--dry-run"):
        if any(word.split("=")[0] == name for word in options):
            raise UsageError(f"{name} cannot stand after --: this command sets it for each run")
    require_place(config.json)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and after the first `--`."""
    argv = list(argv)
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


if __name__ == "__main__":
    cli.run(main)
