"""`jointmae.ablate`: rows are what the paper says, no run is made twice, and the statistics are those of pairs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jointmae.ablate import main
from jointmae.ablation.runs import Score, plan
from jointmae.ablation.summary import markdown, summarize
from jointmae.ablation.tables import TABLES, own
from jointmae.config import to_dict
from jointmae.errors import UsageError
from jointmae.train import parse_args
from tests.conftest import ROOT
from tests.runs import SMALL, contents, fails, run, write_clouds

FAST = [word for word in SMALL if word != "--no-evaluate"]


def differences(options: tuple[str, ...]) -> dict[str, Any]:
    """The fields of the model in which a row differs from the paper's Joint-MAE."""
    base, row = (
        to_dict(parse_args(["--preset", "paper", "--recipe", "paper", *more]))["model"] for more in ((), options)
    )
    return {name: row[name] for name in row if row[name] != base[name]}


EXPECTED = {
    "6": [
        {"attention_2d_to_3d": "global", "attention_3d_to_2d": "global"},
        {"attention_3d_to_2d": "global"},
        {"attention_2d_to_3d": "global"},
        {},
    ],
    "7": [{}, {"hierarchy_3d": False}, {"hierarchy_2d": False}, {"shared_decoder": False}],
    "8": [{"cross_views": 0}, {"cross_views": 1}, {}, {"color_render": True}],
    "baselines": [{}, {"modality": "3d"}, {}],
}


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_the_paper_s_model_but_for_what_it_is_about(name: str) -> None:
    table = TABLES[name]
    assert [differences(row.options) for row in table.rows] == EXPECTED[name]
    assert all(len(row.cells) == len(table.columns) for row in table.rows)
    best = max(row.paper or 0 for row in table.rows)
    assert best == 92.4 and (name == "baselines" or table.rows[table.reference].paper == best)


def test_rows_that_two_tables_share_are_one_run(tmp_path: Path) -> None:
    folders = {name: [run.folder for run in plan(TABLES[name], [], [0], tmp_path)] for name in TABLES}
    full = tmp_path / "as-it-is" / "seed-0"
    assert all(full in found and len(set(found)) == len(found) for found in folders.values())


def test_a_recipe_of_its_own_defaults_still_gives_every_row(tmp_path: Path) -> None:
    """A table says all that its rows are about, also what the recipe would choose otherwise."""
    runs = plan(TABLES["8"], ["--cross-views", "1", "--color-render"], [0], tmp_path)
    assert [(r.config.model.cross_views, r.config.model.color_render) for r in runs] == [
        (0, False), (1, False), (4, False), (4, True),
    ]  # fmt: skip


def test_two_rows_that_are_the_same_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two rows would be the same run, align_cells=2"):
        plan(own(("align-cells=2", "--align-cells=2")), [], [0], tmp_path)
    with pytest.raises(UsageError, match="two rows would be the same run, as-it-is"):
        plan(own(("align-cells=1",)), [], [0], tmp_path)


def test_a_variant_may_have_several_values(tmp_path: Path) -> None:
    (_, changed) = plan(own(("num-neighbors=16,4 no-leak-3d lr=0.5",)), [], [3], tmp_path)
    assert changed.config.model.num_neighbors == (16, 4) and changed.config.model.no_leak_3d
    assert changed.config.lr == 0.5 and changed.config.seed == 3
    assert changed.folder == tmp_path / "num_neighbors=16x4,no_leak_3d=True,lr=0.5" / "seed-3"


def test_differences_are_of_pairs_and_their_error_is_that_of_the_mean() -> None:
    generator = np.random.default_rng(0)
    accuracies = generator.uniform(0.5, 0.9, (4, 3, 2))  # [rows, seeds, sets]
    scores = [
        Score(row, seed, f"set {i}", accuracies[row, seed, i], 1 - accuracies[row, seed, i], 1.0)
        for seed in range(3)
        for row in range(4)
        for i in range(2)
    ]
    summaries = summarize(TABLES["6"], scores)
    for row, summary in enumerate(summaries):
        assert summary is not None
        for i in range(2):
            values = 100 * accuracies[row, :, i]
            assert summary.sets[f"set {i}"].mean == pytest.approx(values.mean())
            assert summary.sets[f"set {i}"].deviation == pytest.approx(values.std(ddof=1))
        pairs = 100 * (accuracies[row] - accuracies[3]).mean(1)
        if row == 3:
            assert summary.difference is None
        else:
            assert summary.difference is not None and summary.difference_cv is not None
            assert summary.difference.mean == pytest.approx(pairs.mean())
            assert summary.difference.error == pytest.approx(pairs.std(ddof=1) / 3**0.5)
            assert summary.difference_cv.mean == pytest.approx(-pairs.mean())


def test_a_table_can_be_read_before_it_is_full() -> None:
    """The first seed is done but for a set of the last row, and the second one has just begun."""
    done = [(row, 0, name) for row in range(4) for name in "ab"][:-1] + [(0, 1, "a")]
    text = markdown(TABLES["6"], summarize(TABLES["6"], [Score(*which, 0.5, 0.4, 1.0) for which in done]))
    lines = text.splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[1:5] == [" Global ", " Global ", " 91.7  ", " 50.0 ± 0.0 "]
    assert lines[2].rstrip(" |").endswith("-0.7") and "+0.00" in lines[2]
    assert "Local  | Local  | 92.4" in lines[5]


def test_an_ablation_is_trained_probed_written_and_not_done_again(tmp_path: Path, monkeypatch, capfd) -> None:
    data = write_clouds(tmp_path / "clouds.h5", train=24, test=9, labels=True)
    monkeypatch.chdir(tmp_path)
    command = ["--table", "baselines", "--seeds", "0", "1", "--json", "result.json", "--", *FAST, "--data", str(data)]
    outcome = run(main, command, monkeypatch, capfd)
    assert outcome.code == 0, outcome
    result = json.loads((tmp_path / "result.json").read_text())
    assert (
        len(result["scores"]) == 6 and result["seeds"] == [0, 1] and result["options"] == [*FAST, "--data", str(data)]
    )
    for row in result["rows"]:
        for seed in (0, 1):
            kept = json.loads(
                (tmp_path / "runs/ablation" / row["run"] / f"seed-{seed}" / "svm-clouds.json").read_text()
            )
            of_table = next(r for r in kept["results"] if r["pooling"] == "mean+max")
            (score,) = (s for s in result["scores"] if result["rows"][s["row"]] is row and s["seed"] == seed)
            assert score["accuracy"] == of_table["accuracy"] and score["accuracy_cv"] == of_table["accuracy_cv"]
    table = outcome.out[outcome.out.index("Baselines:") :]
    assert table.count("|") == 5 * 8 and "| Joint-MAE |" in table

    before = contents(tmp_path / "runs")
    again = run(main, command, monkeypatch, capfd)
    assert again.code == 0 and again.out[again.out.index("Baselines:") :] == table
    assert contents(tmp_path / "runs") == before

    kept = tmp_path / "runs/ablation/untrained/seed-1/svm-clouds.json"
    kept.write_text("{")
    again = run(main, command, monkeypatch, capfd)
    assert "cannot be read" in again.out and again.out[again.out.index("Baselines:") :] == table


def test_a_longer_run_is_probed_again(tmp_path: Path, monkeypatch, capfd) -> None:
    data = write_clouds(tmp_path / "clouds.h5", train=24, test=9, labels=True)
    command = ["--table", "own", "--vary", "lr=1e-4", "--seeds", "0", "--out", str(tmp_path / "runs"), "--"]
    short = [*command, *FAST, "--data", str(data), "--max-steps", "2"]
    assert run(main, short, monkeypatch, capfd).code == 0
    first = (tmp_path / "runs/lr=0.0001/seed-0/svm-clouds.json").read_bytes()
    assert run(main, [*short, "--max-steps", "4"], monkeypatch, capfd).code == 0
    second = (tmp_path / "runs/lr=0.0001/seed-0/svm-clouds.json").read_bytes()
    assert (
        json.loads(first)["key"]["config"]["max_steps"] == 2 and json.loads(second)["key"]["config"]["max_steps"] == 4
    )


def test_a_stopped_ablation_goes_on(tmp_path: Path) -> None:
    data = write_clouds(tmp_path / "clouds.h5", train=24, test=9, labels=True)
    command = [sys.executable, "-m", "jointmae.ablate", "--table", "own", "--vary", "lr=1e-4", "--seeds", "0"]
    more = ["--", *FAST, "--epochs", "4", "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def start(out: str) -> subprocess.Popen[str]:
        files = ["--out", out, "--json", f"{out}.json"]
        return subprocess.Popen(
            [*command, *files, *more], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
        )

    whole = start("whole")
    whole.communicate(timeout=120)
    stopped = start("stopped")
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if "/24 " in line:  # the first step is done
            stopped.send_signal(signal.SIGTERM)
            break
    rest = stopped.stdout.read()
    assert (whole.wait(), stopped.wait()) == (0, 143) and "the same command goes on" in rest
    assert not (tmp_path / "stopped.json").exists()
    again = start("stopped")
    again.communicate(timeout=120)
    assert again.wait() == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "stopped"))
    assert first["scores"] == second["scores"] and first["rows"] == second["rows"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--table", "own"], "--vary is for --table own"),
        (["--vary", "lr=1"], "--vary is for --table own"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--seeds"], "--seeds"),
        (["--", "--seed", "3"], "--seed cannot stand after --"),
        (["--", "--out=x"], "--out cannot stand after --"),
        (["--json", "nowhere/a.json"], "there is no folder nowhere"),
        (["--table", "own", "--vary", "align=2"], "unknown option --align"),
        (["--tabel", "6"], "Did you mean --table?"),
        (["--", "--epohcs", "3"], "Did you mean --epochs?"),
        (["--table", "9"], "--table"),
    ],
)
def test_mistakes_are_answered(argv: list[str], said: str, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(main, argv, monkeypatch, capfd)
    assert fails(outcome, 74 if "--json" in argv else 2, said) and not list(tmp_path.iterdir())


def test_a_set_that_cannot_be_probed_is_named_before_anything_is_trained(tmp_path: Path, monkeypatch, capfd) -> None:
    data = write_clouds(tmp_path / "clouds.h5", train=24, test=9)
    monkeypatch.chdir(tmp_path)
    assert fails(run(main, ["--", *FAST, "--data", str(data)], monkeypatch, capfd), 2, "none of --data has labelled")
    outcome = run(main, ["--probe", str(data), "--", *FAST, "--data", str(data)], monkeypatch, capfd)
    assert fails(outcome, 3, "clouds.h5", "got too few") and not (tmp_path / "runs").exists()
