"""A step of pre-training: clouds a second, memory, FLOP/s and stages, beside the same step in naive plain PyTorch.

    python -m benchmarks.bench_train_step --preset tiny small paper --precision fp32 bf16 --json FILE
    python -m benchmarks.bench_train_step --preset paper --precision bf16 --mode compiled --batch-size 128 256 512
    pytest benchmarks/bench_train_step.py --quick   # does the naive step compute the same?

Whether both compute the same losses and gradients is checked before they are timed. Then all modes of a workload take
turns in random order, and medians count. `naive_step.py` says what the naive step is, and why it is a fair one.

FLOPs are counted, not measured: matrix products and convolutions, forward and backward, of our step, with its attention
as dense products of L x L; sampling, neighbours, projection and Chamfer distance count nothing. The naive step makes
more of them for the same result, so the share of the peak (MFU) is by our count for both. The peak is that of a data
sheet or, as on any CPU, of a large matrix product of the same type in the same run. Memory is the most that a process
held, or on a GPU what the step added. Where the time goes is of the eager step alone: a compiled one has no stages.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.machine import add_run, describe_run, matrix_peak, wait
from benchmarks.naive_step import NaiveStep, augment
from benchmarks.our_step import our_step
from benchmarks.step_profile import profile_steps
from benchmarks.step_work import check_agreement, counted_gflops
from jointmae.config import TrainConfig
from jointmae.data import PointClouds, load, scale_and_shift
from jointmae.device import is_out_of_memory, memory_bytes
from jointmae.recipes import PRESETS, train_config
from tests.models import micro_config

MODES = ("eager", "compiled", "naive")
TOLERANCES = {"fp32": 1e-4, "bf16": 3e-2}
CPU_BATCH = {"tiny": 32, "small": 16, "paper": 8}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One mode of one workload."""

    preset: str
    precision: str
    mode: str
    device: str
    batch_size: int
    agreement: str  # of the naive step with ours
    failed: str = ""
    clouds_per_s: float | None = None
    over_naive: float | None = None  # how many times as fast as the naive step of the same run
    median_ms: float | None = None
    min_ms: float | None = None
    rounds: int = 0
    memory_bytes: int | None = None
    mfu: float | None = None
    tflop_per_s: float | None = None
    peak_tflop_per_s: float | None = None
    peak_is: str = ""
    gflop_per_cloud: float | None = None
    naive_gflop_per_cloud: float | None = None
    stages: dict[str, float] | None = None  # shares of the time


# ---- how fast?


def build(mode: str, config: TrainConfig, clouds: PointClouds, device: torch.device) -> Call:
    """A function that makes one step a call, after its first calls, which compile or allocate."""
    if mode == "naive":
        step: Call = NaiveStep(config, clouds, device)
    else:
        step = our_step(replace(config, compile="on" if mode == "compiled" else "off"), clouds, device)
    for _ in range(3 if device.type == "cuda" else 1):
        step()
    wait(device)
    return step


def take_turns(steps: dict[str, Call], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds a step, a sample a round; at least three rounds, then as many as fit into `seconds`."""

    def sample(step: Call, repeats: int) -> float:
        wait(device)
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        wait(device)
        return (time.perf_counter() - begin) / repeats

    repeats = {name: max(1, int(0.2 / sample(step, 1))) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    begin, round_ = time.perf_counter(), 0
    while round_ < 3 or time.perf_counter() - begin < seconds:
        shuffle(order)
        for name in order:
            samples[name].append(sample(steps[name], repeats[name]))
        round_ += 1
    return samples


def share_of_stages(config: TrainConfig, clouds: PointClouds, device: torch.device) -> dict[str, float]:
    """Shares of the time of an eager step."""
    table = profile_steps(our_step(replace(config, compile="off"), clouds, device), 2, device)
    shares: dict[str, float] = {}
    for stage, (forward, backward, _) in table.items():
        name = stage.partition(":")[0].partition(" of ")[0].partition(" and ")[0]
        shares[name] = shares.get(name, 0.0) + forward + backward
    total = sum(shares.values())
    return {name: round(share / total, 4) for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def memory_of_process(mode: str, config: TrainConfig, threads: int) -> int:
    """The most memory of a process that makes nothing but three steps on the CPU."""
    what = ["--preset", config.preset, "--precision", config.precision, "--batch-size", str(config.batch_size)]
    command = [sys.executable, "-m", "benchmarks.bench_train_step", "--memory-of", mode, *what]
    done = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def peak_of_this_process() -> int:
    """Bytes. On Linux what getrusage says is at least what the parent had held when it started this process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return memory_bytes(torch.device("cpu"))
    (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


def built(
    config: TrainConfig, modes: Sequence[str], clouds: PointClouds, device: torch.device
) -> tuple[dict[str, Call], dict[str, int], dict[str, str]]:
    """The steps by mode, on a GPU the most memory that each holds, and why those that are missing failed."""
    steps: dict[str, Call] = {}
    memory: dict[str, int] = {}
    failed: dict[str, str] = {}
    for mode in modes:
        try:
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            step = build(mode, config, clouds, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                step()
                memory[mode] = torch.cuda.max_memory_allocated(device) - before
        except Exception as error:  # a mode that does not fit, or does not compile, must not stop the others
            failed[mode] = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"[:300]
        else:
            steps[mode] = step
    return steps, memory, failed


def measure(config: TrainConfig, modes: Sequence[str], device: torch.device, options: argparse.Namespace) -> list[Row]:
    """The rows of one workload."""
    gc.collect()  # what the one before leaves in cycles
    torch.compiler.reset()  # which otherwise refuses to compile the same code for ever more models
    clouds = load("furniture", ("train", "extra"))
    agreement = check_agreement(config, device, TOLERANCES[config.precision])
    steps, memory, failed = built(config, modes, clouds, device)
    if device.type == "cpu" and options.memory:
        memory = {mode: memory_of_process(mode, config, options.threads) for mode in steps}
    samples = take_turns(steps, device, options.seconds) if steps else {}
    seconds = {mode: statistics.median(times) for mode, times in samples.items()}
    stages = share_of_stages(config, clouds, device) if "eager" in steps and options.stages else None
    gflop, naive_gflop = counted_gflops(config.model)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak, peak_is = matrix_peak(device, dtype, options.threads)
    rows = []
    for mode in modes:
        row = Row(config.preset, config.precision, mode, device.type, config.batch_size, agreement)
        if mode in failed:
            rows.append(replace(row, failed=failed[mode]))
            continue
        clouds_per_s = config.batch_size / seconds[mode]
        rows.append(replace(
            row,
            clouds_per_s=_rounded(clouds_per_s),
            over_naive=_rounded(seconds["naive"] / seconds[mode]) if "naive" in seconds else None,
            median_ms=_rounded(1e3 * seconds[mode]),
            min_ms=_rounded(1e3 * min(samples[mode])),
            rounds=len(samples[mode]),
            memory_bytes=memory.get(mode),
            mfu=_rounded(1e9 * gflop * clouds_per_s / peak),
            tflop_per_s=_rounded(1e-3 * gflop * clouds_per_s),
            peak_tflop_per_s=_rounded(1e-12 * peak),
            peak_is=peak_is,
            gflop_per_cloud=_rounded(gflop),
            naive_gflop_per_cloud=_rounded(naive_gflop),
            stages=stages if mode == "eager" else None,
        ))  # fmt: skip
    return rows


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


# ---- the command

HEAD = """| preset | precision | batch | mode | clouds/s | x naive | ms | GB | TFLOP/s | of peak |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(row: Row) -> str:
    """A row of the Markdown table."""
    cells = [row.preset, row.precision, str(row.batch_size), row.mode]
    if row.failed:
        return f"| {' | '.join([*cells, row.failed])} |"
    memory = "" if row.memory_bytes is None else f"{1e-9 * row.memory_bytes:.2f}"
    cells += [f"{row.clouds_per_s:,.4g}", "" if row.over_naive is None else f"{row.over_naive:.2f}"]
    cells += [f"{row.median_ms:.4g}", memory, f"{row.tflop_per_s:.3g}", f"{row.mfu:.1%}"]
    return f"| {' | '.join(cells)} |"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=["tiny"])
    parser.add_argument("--precision", nargs="+", choices=list(TOLERANCES), default=["fp32"])
    parser.add_argument("--mode", nargs="+", choices=MODES, help="default: eager naive, on a GPU compiled too")
    parser.add_argument("--batch-size", nargs="+", type=int, help="default: the preset's, on a CPU 32, 16 or 8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the turns of one workload")
    parser.add_argument("--budget", type=float, default=float("inf"), help="start no workload after so many seconds")
    parser.add_argument("--stages", action=argparse.BooleanOptionalAction, default=True, help="profile the eager step")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="a process a mode on a CPU"
    )
    parser.add_argument("--json", type=Path, help="add the rows to this file, a list of runs")
    parser.add_argument("--memory-of", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args()


def workloads(options: argparse.Namespace) -> list[TrainConfig]:
    """One config for each preset, precision and batch size."""
    configs = []
    for preset in options.preset:
        config = train_config(preset)
        default = config.batch_size if options.device.startswith("cuda") else CPU_BATCH[preset]
        for precision in options.precision:
            configs += [
                replace(config, precision=precision, batch_size=B, lr=config.min_lr)
                for B in options.batch_size or [default]
            ]
    return configs


def main() -> int:
    """Prints the table as it comes; returns 1 if a mode failed."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    device, begin = torch.device(options.device), time.monotonic()
    modes = options.mode or [mode for mode in MODES if mode != "compiled" or device.type == "cuda"]
    if options.memory_of:
        step = build(options.memory_of, workloads(options)[0], load("furniture"), device)
        step()
        step()
        print(peak_of_this_process())
        return 0
    head, rows = describe_run(options.threads), []
    print(HEAD, flush=True)
    for config in workloads(options):
        if time.monotonic() - begin > options.budget:
            print("the rest was left out: --budget", file=sys.stderr)
            break
        found = measure(config, modes, device, options)
        rows += found
        print(*map(line, found), sep="\n", flush=True)
        for row in found:
            if row.stages:
                shares = ", ".join(f"{name} {share:.1%}" for name, share in row.stages.items())
                print(f"eager {row.preset} {row.precision}: {shares}", file=sys.stderr, flush=True)
        if options.json:
            add_run(options.json, {**head, "rows": [asdict(row) for row in rows]})
    return int(any(row.failed for row in rows))


# ---- pytest


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_naive_step_agrees(device, norm, dtype, tolerance):
    """In float64 neither rounding nor a tie can hide or feign a difference; our heads and cameras stay float32."""
    config = TrainConfig(model=micro_config(group_scale=10.0, point_norm=norm), batch_size=4, precision="fp32")
    check_agreement(config, device, tolerance, dtype)


def test_naive_augmentation_agrees():
    points, keys = load("furniture").points[:3], torch.arange(3)
    expected = scale_and_shift(points, keys, keys + 3, scale=(0.7, 0.7), shift=0.0)
    found = [augment(cloud.numpy(), np.float32([0.7] * 3), np.float32([0.1, -0.2, 0])) for cloud in points]
    torch.testing.assert_close(torch.from_numpy(np.stack(found)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["micro", "tiny", "small"])
def bench_train_step(compare, device, quick, preset, precision):
    if device.type != "cpu":
        pytest.skip("python -m benchmarks.bench_train_step measures a GPU")
    if quick and (preset, precision) != ("micro", "fp32"):
        pytest.skip("a large workload: run without --quick")
    config = TrainConfig(model=micro_config(group_scale=10.0)) if preset == "micro" else train_config(preset)
    B = CPU_BATCH.get(preset, 8)
    config = replace(config, precision=precision, batch_size=B, lr=config.min_lr)
    agreement = check_agreement(config, device, TOLERANCES[precision])
    clouds = load("furniture")
    compare(
        f"training step {preset} {precision} B{B}",
        {"jointmae": build("eager", config, clouds, device), "naive": build("naive", config, clouds, device)},
        [()],
        check=lambda *_: agreement,
        flops=1e9 * counted_gflops(config.model)[0] * B,
    )


if __name__ == "__main__":
    sys.exit(main())
