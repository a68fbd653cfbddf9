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
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9.5), sharex=True, layout="constrained")
    for panel, (title, rows) in zip(axes.flat, run["seconds"].items(), strict=True):
        peers = sorted(rows.keys() - {OURS}, key=lambda name: -list(rows[name].values())[-1])
        for i, name in enumerate([*peers, OURS]):
            sizes, milliseconds = zip(*((int(N), 1e3 * s) for N, s in rows[name].items()), strict=True)
            style: dict[str, Any] = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else ":"}
            if name == OURS:
                style = {"color": "black", "linewidth": 2.5}
            panel.loglog(sizes, milliseconds, marker="o", markersize=3.5, label=name, **style)
        bottom, top = panel.get_ylim()
        linear = [100, 1_000_000]
        panel.loglog(linear, [bottom * 1.5, bottom * 1.5e4], color="0.8", linestyle="--", zorder=0, label="linear")
        panel.set(title=title, ylabel="milliseconds", ylim=(bottom, top))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, frameon=False, loc="upper left")
    for panel in axes[1]:
        panel.set_xlabel("points")
    figure.suptitle(f"One cloud, {run['threads']} threads of {run['cpu']}, commit {run['commit']}", fontsize=10)
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
