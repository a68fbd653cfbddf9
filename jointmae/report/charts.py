"""Line charts as inline SVG: sharp at every size, and their colours follow the page into dark mode (page.css)."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from jointmae.report.words import to_html

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 350, 12, 180  # the frame inside the picture
_MAX_POINTS = 300  # of one line: more cannot be seen


class Line(NamedTuple):
    """One curve; `label` is shown where a chart has several."""

    label: str
    steps: list[int]
    values: list[float]


class Axis(NamedTuple):
    """Values `low`..`high` onto pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """The pixel of `value`; what lies outside is moved to the nearer end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def chart(
    title: str, lines: list[Line], last_step: int, reference: tuple[str, float] | None = None, log: bool = True
) -> str:
    """A `<figure>` with one curve a line over steps 0..last_step, and `reference` (label, value) as a dashed line.

    With `log`, values that are not positive are left out. Returns "" if nothing is left to draw.
    """
    lines = [_thinned(_positive(line) if log else line) for line in lines]
    lines = [line for line in lines if line.values and any(line.values)]
    if not lines:
        return ""
    if log and reference is not None and reference[1] <= 0:  # the trivial loss of clouds without extent
        reference = None
    log = log and min(min(line.values) for line in lines) > 0
    y = _value_axis(lines, reference, log)
    x = Axis(0, max(last_step, 1), _LEFT, _RIGHT, log=False)
    parts = [_grid(x, y), *(_curve(line, i, x, y) for i, line in enumerate(lines))]
    if reference is not None:
        parts.append(_dashed(reference, y))
    ends = ", ".join(f"{line.label or title} ends at {number(line.values[-1])}" for line in lines)
    return (
        f'<figure class="chart"><figcaption><b>{to_html(title)}</b>{_legend(lines, reference)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} by step; {escape(ends)}.">'
        f"{''.join(parts)}</svg></figure>"
    )


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"


def _positive(line: Line) -> Line:
    kept = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if value > 0]
    return Line(line.label, [step for step, _ in kept], [value for _, value in kept])


def _thinned(line: Line) -> Line:
    """Means over equal runs of points, so that no line has more than `_MAX_POINTS`."""
    size = -(-len(line.values) // _MAX_POINTS)
    if size <= 1:
        return line
    runs = range(0, len(line.values), size)
    values = [sum(line.values[i : i + size]) / len(line.values[i : i + size]) for i in runs]
    return Line(line.label, [line.steps[min(i + size, len(line.steps)) - 1] for i in runs], values)


def _value_axis(lines: list[Line], reference: tuple[str, float] | None, log: bool) -> Axis:
    """Room for the last nine tenths of every line: the steep fall of the first steps would flatten the rest."""
    tails = [value for line in lines for value in line.values[len(line.values) // 10 :]]
    tails += [reference[1]] if reference is not None else []
    low, high = min(tails), max(tails)
    if log:
        margin = max((high / low) ** 0.06, 1.02)
        return Axis(low / margin, high * margin, _BOTTOM, _TOP, log=True)
    low = min(low, 0.0)
    return Axis(low, high + 0.06 * (high - low), _BOTTOM, _TOP, log=False)


def ticks(axis: Axis, count: int = 4) -> list[float]:
    """About `count` round numbers within the axis: 1, 2 and 5 of each decade if that is enough, else evenly spaced."""
    if axis.log:
        decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [float(f"{digit}e{power}") for power in decades for digit in digits]
            found = [value for value in found if axis.low <= value <= axis.high]
            if len(found) >= 3:
                return found[:: -(-len(found) // 7)]
    rough = (axis.high - axis.low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for value in ticks(y):
        at = y.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(x):
        if value == round(value):
            anchor = "end" if value > 0.93 * x.high else "middle"
            parts.append(
                f'<text x="{x.place(value):.1f}" y="{_BOTTOM + 15}" text-anchor="{anchor}">{value:,.0f}</text>'
            )
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 28}" text-anchor="middle">step</text>')
    return "".join(parts)


def _curve(line: Line, index: int, x: Axis, y: Axis) -> str:
    points = [f"{x.place(s):.1f},{y.place(v):.1f}" for s, v in zip(line.steps, line.values, strict=True)]
    if len(points) == 1:  # a run of a few steps has one line of metrics
        return f'<circle class="dot{index}" cx="{points[0].split(",")[0]}" cy="{points[0].split(",")[1]}" r="3"/>'
    return f'<polyline class="line{index}" points="{" ".join(points)}"/>'


def _dashed(reference: tuple[str, float], y: Axis) -> str:
    at = y.place(reference[1])
    return f'<line class="reference" x1="{_LEFT}" x2="{_RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'


def _legend(lines: list[Line], reference: tuple[str, float] | None) -> str:
    """The end of each curve, with its name where there are several."""
    named = len(lines) > 1
    items = [
        f'<span class="key{i}">{to_html(line.label) + " " if named else "ends at "}{number(line.values[-1])}</span>'
        for i, line in enumerate(lines)
    ]
    if reference is not None:
        items.append(f'<span class="key-reference">{escape(reference[0])} {number(reference[1])}</span>')
    return f'<span class="legend">{"".join(items)}</span>'
