"""Scores of several seeds as a table: means, and differences from one row with their standard errors.

Seeds are paired: row and reference with one seed have the same initial weights where their modules are the same, and
see the same clouds in the same order, so that the difference of a pair varies less than either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jointmae.ablation.runs import Score
from jointmae.ablation.tables import Table
from jointmae.text import markdown_table


@dataclass(frozen=True)
class Estimate:
    """A mean in percent, and what is known of its error."""

    mean: float
    deviation: float | None  # standard deviation over seeds; None for one seed
    count: int

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


@dataclass(frozen=True)
class RowSummary:
    """One row over the seeds that are done."""

    sets: dict[str, Estimate]  # test accuracy on each set
    mean: Estimate  # over sets
    difference: Estimate | None  # of `mean` from the reference row, seed by seed; None of the reference itself
    difference_cv: Estimate | None  # the same by cross-validation on train


def summarize(table: Table, scores: Sequence[Score]) -> list[RowSummary | None]:
    """One for each row; None where no seed is done."""
    reference = [score for score in scores if score.row == table.reference]
    return [
        _summary([score for score in scores if score.row == row], None if row == table.reference else reference)
        for row in range(len(table.rows))
    ]


def markdown(table: Table, summaries: Sequence[RowSummary | None]) -> str:
    """The table in the paper's form: its numbers, ours, and how far each row is from the reference."""
    sets = list(dict.fromkeys(name for summary in summaries if summary for name in summary.sets))
    reference = table.rows[table.reference]
    head = [*table.columns, "paper", *sets, "mean", "difference", "by cross-validation", "in the paper"]
    lines = []
    for row, summary in zip(table.rows, summaries, strict=True):
        paper = "" if row.paper is None else f"{row.paper:.1f}"
        told = "" if row.paper is None or reference.paper is None else f"{row.paper - reference.paper:+.1f}"
        if summary is None:
            numbers = [""] * (len(sets) + 3)
        else:
            numbers = [_with(summary.sets.get(name), lambda e: e.deviation) for name in sets]
            numbers += [_with(summary.mean, lambda e: e.deviation)]
            numbers += [_with(d, lambda e: e.error, "+.2f") for d in (summary.difference, summary.difference_cv)]
        lines.append([*row.cells, paper, *numbers, "" if row is reference else told])
    return markdown_table(head, lines)


def _summary(scores: Sequence[Score], reference: Sequence[Score] | None) -> RowSummary | None:
    if not scores:
        return None
    sets = list(dict.fromkeys(score.data for score in scores))
    difference = difference_cv = None
    if reference is not None:
        difference = _difference(_means(scores, "accuracy"), _means(reference, "accuracy"))
        difference_cv = _difference(_means(scores, "accuracy_cv"), _means(reference, "accuracy_cv"))
    mean = _estimate(_means(scores, "accuracy").values())
    assert mean is not None
    of_sets = {name: _estimate(s.accuracy for s in scores if s.data == name) for name in sets}
    return RowSummary({name: e for name, e in of_sets.items() if e}, mean, difference, difference_cv)


def _means(scores: Sequence[Score], what: str) -> dict[int, float]:
    """By seed, the mean over the sets; seeds that lack a set are left out."""
    num_sets = len({score.data for score in scores})
    by_seed: dict[int, list[float]] = {}
    for score in scores:
        by_seed.setdefault(score.seed, []).append(getattr(score, what))
    return {seed: statistics.fmean(values) for seed, values in by_seed.items() if len(values) == num_sets}


def _difference(ours: dict[int, float], theirs: dict[int, float]) -> Estimate | None:
    return _estimate(ours[seed] - theirs[seed] for seed in ours if seed in theirs)


def _estimate(fractions: Iterable[float]) -> Estimate | None:
    values = [100 * value for value in fractions]
    if not values:
        return None
    return Estimate(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def _with(estimate: Estimate | None, error: Callable[[Estimate], float | None], form: str = ".1f") -> str:
    if estimate is None:
        return ""
    spread = error(estimate)
    return f"{estimate.mean:{form}}" + ("" if spread is None else f" ± {spread:{form.lstrip('+')}}")
