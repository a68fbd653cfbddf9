"""report.html of a downstream command: its settings, each of several runs, in one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jointmae.files import write_atomically
from jointmae.report import html, words
from jointmae.report.charts import Line, chart
from jointmae.text import counted, spoken

Results = list[dict[str, Any]]
_SHOWN_RUNS = 3  # curves that can be told apart in one chart


def write_report(folder: Path, groups: Sequence[Results]) -> None:
    """Writes `report.html` into `folder`; each group is the results of the runs of one setting, which lie below it."""
    from jointmae.downstream.runs import row, summarize

    first = groups[0][0]
    rows = [{k: v for k, v in row(results).items() if k not in ("data", "encoder")} for results in groups]
    columns = list(dict.fromkeys(name for cells in rows for name in cells))
    leads = []
    for results in groups:
        name, estimate = next(iter(summarize(results).items()))
        setting = f"{results[0]['setting']}: " if "setting" in results[0] else ""
        leads.append(f"{setting}{spoken(name)} {estimate} % over {counted(len(results), 'run')}")
    env = first["environment"]
    config = first["config"]
    val = f"{first['num_val']:,} validation, " if first["num_val"] else ""
    facts = [
        ("Task", first["task"]),
        ("Data", first["data"]),
        ("Encoder", first["encoder"]),
        ("Clouds", f"{first['num_train']:,} train, {val}{first['num_test']:,} test"),
        ("Runs", ", ".join(str(len(results)) for results in groups)),
        ("Epochs", f"{first['epochs']:,}, batches of at most {config['batch_size']:,}"),
        ("Epoch chosen by", first["selection"]),
        ("Finished", words.date(first["time"])),
        ("Machine", f"{env.get('cpus', '?')} CPUs, {env.get('platform', 'unknown')}"),
        ("Software", words.software(env)),
    ]
    note = (
        '<p class="note">Percent of the test split, mean ± standard deviation over the runs. The test split was read '
        f"once a run, with the weights of its chosen epoch ({escape(first['selection'])}).</p>"
    )
    if config["paper_selection"]:
        note = (
            '<p class="note"><b>The epoch was chosen by the test split itself</b> (--paper-selection), as published '
            "results of this family were: such numbers flatter, and go beside such numbers alone.</p>"
        )
    sections = [
        ("result", "What it is worth", html.table(columns, [[r.get(c, "") for c in columns] for r in rows]) + note),
        ("curves", "How it learned", _curves(folder, groups)),
    ]
    if "setting" not in first and (detail := _by_class(groups[0])):  # few-shot draws have other classes each
        sections.append(("classes", "Class by class", detail))
    sections.append(("details", "Details", _details(folder, groups)))
    heading = f"{first['task']} on {first['data']}, encoder {first['encoder']}"
    lead = "; ".join(leads) + "."
    page = html.page(first["task"], _sentence(heading), escape(_sentence(lead)), facts, sections)
    write_atomically(folder / "report.html", page)


def _curves(folder: Path, groups: Sequence[Results]) -> str:
    """Of the first runs of the first setting."""
    runs = [Path(result["config"]["out"]) for result in groups[0][:_SHOWN_RUNS]]
    metrics = [(run.name, words.read_lines(run / "metrics.jsonl")) for run in runs]
    last = max((lines[-1]["step"] for _, lines in metrics if lines), default=0)
    names = dict.fromkeys(key for _, lines in metrics for m in lines for key in m)
    shown = [key for key in names if key not in ("step", "epoch", "lr", "grad_norm")]
    charts = []
    for key in [*shown, "lr"]:
        lines = [
            Line(name, [m["step"] for m in found if key in m], [m[key] for m in found if key in m])
            for name, found in metrics
        ]
        charts.append(chart(_title(key), [line for line in lines if line.values], last, log=key == "loss"))
    more = sum(len(results) for results in groups) - len(runs)
    others = f" {more} more runs are not shown." if more else ""
    return (
        f'<div class="charts">{"".join(charts)}</div><p class="note">Loss and accuracy of training batches, which are '
        f"augmented, and of what is held out at the end of each epoch.{others}</p>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(key: str) -> str:
    known = {"lr": "Learning rate", "loss": "Training loss"}
    if key in known:
        return known[key]
    part, _, rest = key.partition("_")
    where = {"val": "Validation", "test": "TEST split,"}.get(part)
    name = f"{where} {rest}" if where else f"Training {key}"
    return spoken(name)


def _by_class(results: Results) -> str:
    """Means over the runs."""
    names = list(dict.fromkeys(name for result in results for name in result.get("classes", {})))
    if not names:
        return ""
    numbers = [key for key in next(iter(results[0]["classes"].values())) if key != "num_test"]
    rows = []
    for name in names:
        found = [result["classes"][name] for result in results if name in result["classes"]]
        means = [words.percent(sum(one[key] for one in found) / len(found)) for key in numbers]
        rows.append([name, f"{found[0]['num_test']:,}", *means])
    return html.table(["class", "test clouds", *map(spoken, numbers)], rows)


def _details(folder: Path, groups: Sequence[Results]) -> str:
    first = groups[0][0]
    each = [
        [
            str(Path(result["config"]["out"]).relative_to(folder)),
            str(result["epoch"]),
            *(words.percent(value) for value in result["test"].values()),
        ]
        for results in groups
        for result in results
    ]
    head = ["run", "epoch", *map(spoken, first["test"])]
    return (
        html.table(head, each)
        + html.fold("Configuration of the first run", json.dumps(first["config"], indent=2))
        + html.fold("Encoder and data", json.dumps(first["inputs"], indent=2))
        + html.fold("Environment", json.dumps(first["environment"], indent=2))
    )
