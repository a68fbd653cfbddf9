"""Where the time of one pre-training step on the CPU goes, stage by stage.

    python -m benchmarks.step_profile --preset small --batch-size 16

Every stage of the model's figure gets a label for PyTorch's profiler; a gradient counts where its forward operation was
called. "matrix" is what matrix products, convolutions and attention take of it.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.machine import wait
from benchmarks.our_step import our_step
from jointmae import pretraining
from jointmae.data import load
from jointmae.model import joint_mae, losses
from jointmae.model.joint_mae import JointMAE
from jointmae.pretraining import Pretraining
from jointmae.recipes import train_config

# Functions as they are found by their callers, and the stage that they are; the innermost label counts.
STAGES: list[tuple[Any, str, str]] = [
    (Pretraining, "batch", "augmentation"),
    (pretraining, "augment", "augmentation"),
    (pretraining, "draw", "augmentation"),
    (joint_mae, "sample_geometry", "geometry: sampling and grouping"),
    (joint_mae, "group_points", "geometry: sampling and grouping"),
    (joint_mae, "project", "geometry: projection"),
    (JointMAE, "_finish", "geometry: projection"),
    (JointMAE, "_render", "geometry: projection"),
    (JointMAE, "join_groups", "geometry: projection"),
    (losses, "loss_cross", "geometry: projection"),
    (losses, "loss_3d", "geometry: Chamfer distance"),
    (joint_mae, "mask_tokens", "geometry: masks"),
    (JointMAE, "_align", "geometry: masks"),
    (JointMAE, "_visible_3d", "embedding of points"),
    (JointMAE, "_visible_2d", "embedding of depth"),
    (JointMAE, "encode_visible", "encoder"),
    (JointMAE, "decode", "decoders and heads"),
    (JointMAE, "forward", "decoders and heads"),
    (torch.optim.AdamW, "step", "optimizer"),
]
MATRIX = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "convolution", "attention")
PREFIX = "stage: "


@contextmanager
def labelled_stages() -> Iterator[None]:
    """Labels every function of STAGES for the profiler."""

    def labelled(call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(PREFIX + stage):
                return call(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for owner, name, stage in STAGES:
            stack.enter_context(mock.patch.object(owner, name, labelled(getattr(owner, name), stage)))
        yield


def stage_of(event: FunctionEvent) -> str | None:
    """The innermost label around an event of the forward pass."""
    while event is not None:
        if event.name.startswith(PREFIX):
            return str(event.name.removeprefix(PREFIX))
        event = event.cpu_parent
    return None


def forward_sequence(event: FunctionEvent) -> int | None:
    """The number that an event of the backward pass shares with its operation of the forward pass."""
    while event is not None:
        if event.name.startswith("autograd::engine"):
            return int(event.sequence_nr)
        event = event.cpu_parent
    return None


def is_matrix_work(event: FunctionEvent) -> bool:
    """Whether the event is, or is called by, a product of matrices."""
    while event is not None:
        if any(name in event.name for name in MATRIX):
            return True
        event = event.cpu_parent
    return False


def microseconds_by_stage(events: list[FunctionEvent], device: torch.device) -> dict[str, list[float]]:
    """[forward, backward, of which matrix] of the calling thread, or of the kernels that it started on a GPU."""
    events = [event for event in events if event.device_type == DeviceType.CPU]  # a GPU's hang on those that start them
    stage_by_sequence = {e.sequence_nr: stage_of(e) for e in events if e.sequence_nr >= 0 and stage_of(e) is not None}
    table: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in events:
        sequence = forward_sequence(event)
        stage = stage_of(event) if sequence is None else stage_by_sequence.get(sequence)
        time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        row = table[stage or "the rest"]
        row[sequence is not None] += time
        row[2] += time * is_matrix_work(event)
    return table


def profile_steps(step: Callable[[], Any], num_steps: int, device: torch.device) -> dict[str, list[float]]:
    """`microseconds_by_stage` of so many calls of an eager `step`, after one that is not counted."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with labelled_stages():
        step()
        with profile(activities=activities) as profiler:
            for _ in range(num_steps):
                step()
            wait(device)
    return microseconds_by_stage(list(profiler.events()), device)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=["tiny", "small", "paper"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = replace(train_config(options.preset), batch_size=options.batch_size)
    cpu = torch.device("cpu")
    table = profile_steps(our_step(config, load("furniture"), cpu), options.steps, cpu)
    total = sum(forward + backward for forward, backward, _ in table.values())
    print(f"{options.preset}, {options.batch_size} clouds, {options.threads} threads, ms a step")
    print(f"{'':34} {'forward':>9} {'backward':>9} {'matrix':>9} {'share':>7}")
    scale = 1e-3 / options.steps
    for stage, (forward, backward, matrix) in sorted(table.items()):
        share = (forward + backward) / total
        print(f"{stage:34} {forward * scale:9.1f} {backward * scale:9.1f} {matrix * scale:9.1f} {share:7.1%}")
    geometry = sum(sum(row[:2]) for stage, row in table.items() if stage.startswith("geometry"))
    matrix = sum(row[2] for row in table.values())
    print(f"{total * scale:.0f} ms in all; geometry {geometry / total:.1%}, matrix work {matrix / total:.1%}")


if __name__ == "__main__":
    main()
