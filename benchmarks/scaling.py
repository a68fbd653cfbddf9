"""Time against the number of points, 10^2 to 10^6, of ours and of every peer at hand: a figure for docs/.

    python -m benchmarks.scaling --out docs/images/scaling.png --json benchmarks/results/scaling.json
    python -m benchmarks.scaling --out docs/images/scaling.png --from benchmarks/results/scaling.json  # only draws

One cloud each: farthest point sampling of N / 4 points (at most 1,024), the 16 nearest neighbours of every point,
Chamfer distance of two clouds of N points, and the depth map of 224 x 224 pixels. All candidates of a size take turns,
and their medians count; who took more than --patience seconds is left out of larger sizes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do: before torch starts its threads

import torch
from torch import Tensor

from benchmarks.clouds import clouds
from benchmarks.machine import describe_run
from benchmarks.peers import peers_of
from jointmae import ops

SIZES = [round(10 ** (2 + step / 2)) for step in range(9)]
CPU = torch.device("cpu")
OURS = "jointmae"
Call = Callable[[], Any]


def _chamfer(N: int) -> tuple[Any, ...]:
    return clouds(1, N, CPU), clouds(1, N, CPU)


def _sample(N: int) -> tuple[Any, ...]:
    return clouds(1, N, CPU), min(N // 4, 1024)


def _neighbors(N: int) -> tuple[Any, ...]:
    points = clouds(1, N, CPU)
    return points, points, 16


def _view(N: int) -> tuple[Any, ...]:
    points = clouds(1, N, CPU)
    points = points / points.abs().amax() + torch.tensor([0.0, 0.0, 2.5])
    return points, torch.tensor([[260.0, 0, 112], [0, 260, 112], [0, 0, 1]]), 224


def _draw(points: Tensor, intrinsics: Tensor, size: int) -> Tensor:
    world_to_cam = torch.eye(4)[:3].expand(1, 1, 3, 4).contiguous()
    return ops.project_points(points, world_to_cam, intrinsics, (size, size), 0).depth


# Op, its name in the figure, its inputs at N points, our call, and the pairs of points that peers are limited by.
OPS: list[tuple[str, str, Callable[[int], tuple[Any, ...]], Callable[..., Any], Callable[[int], float]]] = [
    ("farthest_point_sample", "farthest point sampling", _sample, ops.farthest_point_sample, lambda N: N * 1024),
    ("knn", "16 nearest neighbours", _neighbors, ops.knn, lambda N: N * N),
    ("chamfer_distance", "Chamfer distance", _chamfer, ops.chamfer_distance, lambda N: N * N),
    ("project_points", "depth map, 224 x 224", _view, _draw, lambda N: N),
]


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _medians(calls: dict[str, Call], threads: int, patience: float) -> dict[str, float]:
    """Seconds a call, by candidate: rounds of one call each, as long as they take less than two seconds together."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for round_ in range(51):
        for name, call in calls.items():
            torch.set_num_threads(threads)  # some peers leave it changed
            if not samples[name] or max(samples[name]) < patience:
                samples[name].append(_seconds(call))
        if round_ >= 4 and time.perf_counter() - begin > 2:
            break
    return {name: statistics.median(times[1:] or times) for name, times in samples.items()}  # the first is a warm-up


def measure(threads: int, patience: float, sizes: list[int]) -> dict[str, dict[str, dict[int, float]]]:
    """Seconds by op, candidate and number of points."""
    table: dict[str, dict[str, dict[int, float]]] = {}
    for op, title, make, ours, pairs in OPS:
        rows = table.setdefault(title, {})
        slow: set[str] = set()
        for N in sizes:
            torch.manual_seed(N)
            inputs = make(N)
            candidates = {OURS: ours, **{p.name: p.call for p in peers_of(op, CPU, pairs(N))}}
            calls = {name: partial(call, *inputs) for name, call in candidates.items() if name not in slow}
            found = _medians({n: call for n, call in calls.items() if _works(n, call)}, threads, patience)
            for name, seconds in found.items():
                rows.setdefault(name, {})[N] = seconds
                if seconds > patience:
                    slow.add(name)
            best = min((s, n) for n, s in found.items() if n != OURS)
            print(
                f"{title:26} N {N:8,}  ours {1e3 * found[OURS]:10.3f} ms   {best[1]} x{best[0] / found[OURS]:.2f}",
                flush=True,
            )
    return table


def _works(name: str, call: Call) -> bool:
    """Whether a candidate can do this size. It may raise what it likes, ours may not."""
    try:
        call()
    except Exception as error:
        if name == OURS:
            raise
        print(f"{name} left out: {type(error).__name__}: {str(error)[:100]}")
        return False
    return True


def draw(run: dict[str, Any], path: Path) -> None:
    """One panel an op, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = run["seconds"]
    names = [OURS, *sorted({name for rows in table.values() for name in rows} - {OURS})]
    colors = dict(zip(names[1:], pyplot.cm.tab20.colors, strict=False))  # type: ignore[attr-defined]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5), sharex=True, layout="constrained")
    for panel, (title, rows) in zip(axes.flat, table.items(), strict=True):
        for name in names:
            if name in rows:
                sizes, seconds = zip(*((int(N), 1e3 * s) for N, s in rows[name].items()), strict=True)
                style = {"color": "black", "linewidth": 2.5, "zorder": 3} if name == OURS else {"color": colors[name]}
                panel.loglog(sizes, seconds, marker="o", markersize=4, **style)
        top, bottom = panel.get_ylim()[1], panel.get_ylim()[0]
        start = rows[OURS][min(rows[OURS], key=int)] * 1e3
        guide = [100, 1_000_000]
        panel.loglog(guide, [start / 4, start / 4 * 1e4], color="0.8", linestyle="--", zorder=0)
        panel.set_ylim(bottom, top)
        panel.set_title(title)
        panel.set_ylabel("milliseconds")
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("points")
    handles = [pyplot.Line2D([], [], color=colors.get(n, "black"), linewidth=2.5 if n == OURS else 1.5) for n in names]
    guide_handle = pyplot.Line2D([], [], color="0.8", linestyle="--")
    figure.legend([*handles, guide_handle], [*names, "linear"], loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"One cloud, {run['threads']} threads, {run['cpu']}", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, or reads what was measured, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the figure, a PNG file")
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    parser.add_argument("--from", dest="source", type=Path, help="draw these numbers, measure nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--patience", type=float, default=1.0)
    parser.add_argument("--largest", type=float, default=math.inf, help="no more points than this")
    options = parser.parse_args()
    if options.source is not None:
        run = json.loads(options.source.read_text())
    else:
        sizes = [N for N in SIZES if N <= options.largest]
        run = {**describe_run(options.threads), "seconds": measure(options.threads, options.patience, sizes)}
    if options.json is not None:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    draw(run, options.out)


if __name__ == "__main__":
    main()
