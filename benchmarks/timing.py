"""One workload: ours, the reference and the rivals, checked, then timed in turn, so that their ratios mean much.

Why not pytest-benchmark: it times one function after another. On a machine with neighbours the minute in between is
worth a factor of two, so a ratio has to come from rounds in which every candidate has its turn.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import Work, ceilings, wait
from benchmarks.peers import Peer

MIN_SAMPLE_S = 0.02  # calls shorter than this are timed several at once: after another candidate's the cores are cold
Candidates = dict[str, Callable[..., Any]]
Inputs = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Row:
    """One candidate on one workload. `slower` is its time over ours, `over_floor` over `floor_ms`."""

    workload: str
    parameters: dict[str, Any]
    device: str
    candidate: str
    agreement: str  # with ours: "=" to the bit, else how far off, and what else differs
    median_ms: float | None = None  # None: it failed, and `agreement` says how
    min_ms: float | None = None
    graph_ms: float | None = None  # on a GPU, ours replayed as a CUDA graph: the kernels without PyTorch's way to them
    rounds: int = 0
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    floor_ms: float | None = None
    over_floor: float | None = None
    slower: float | None = None


@dataclass(frozen=True)
class Compare:
    """The fixture `compare`: measures one workload and hands its rows to `report`."""

    device: torch.device
    threads: int  # of the CPU
    quick: bool
    parameters: dict[str, Any]
    report: Callable[[list[Row]], None]

    def __call__(
        self,
        workload: str,
        candidates: Candidates,
        inputs: Inputs,
        *,
        rivals: Sequence[Peer] = (),
        check: Callable[[Any, Any], str | None] = torch.testing.assert_close,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda call: call,
        num_bytes: float | None = None,
        flops: float | None = None,
        lane_ops: float | None = None,
        cycles: Callable[[int], float] | None = None,
    ) -> None:
        """Checks, then times `candidates` and `rivals` on `inputs`; the first candidate is ours, every ratio is to it.

        Each is called with one of `inputs`, in turn, so that none finds its input in the cache; `wrap` may add the
        backward pass. `check(result, ours)` must pass on the first input, and may say how far they agree. A rival that
        fails is not timed, and its row says why; what fails of ours fails the benchmark. The rest is the op's `Work`.
        """
        ours, *_ = candidates
        calls = {name: wrap(call) for name, call in candidates.items()}
        expected = calls[ours](*inputs[0])
        agreement = {name: check(call(*inputs[0]), expected) or "" for name, call in calls.items()}
        failed = {}
        for rival in rivals:
            call = wrap(rival.call)
            try:
                said = (rival.check or check)(call(*inputs[0]), expected) or ""
            except Exception as error:  # what a rival raises must not stop the others
                failed[rival.name] = f"failed: {type(error).__name__}: {error}".partition("\n")[0][:200]
            else:
                calls[rival.name] = call
                agreement[rival.name] = "; ".join(filter(None, (said, rival.differs)))
        samples = self._time(calls, inputs)
        graph_s = self._graph_s(calls[ours], inputs) if self.device.type == "cuda" else None
        work = Work(num_bytes, flops, lane_ops, cycles)
        floor_s = ceilings(self.device, self.threads).floor_s(work)
        median = {name: statistics.median(times) for name, times in samples.items()}
        rows = [
            Row(
                workload=workload,
                parameters=self.parameters,
                device=self.device.type,
                candidate=name,
                agreement="" if name == ours else agreement[name],
                median_ms=round(1e3 * median[name], 5),
                min_ms=round(1e3 * min(times), 5),
                graph_ms=_rounded(graph_s, 1e3) if name == ours else None,
                rounds=len(times),
                gb_per_s=_rounded(num_bytes, 1e-9 / median[name]),
                gflop_per_s=_rounded(flops, 1e-9 / median[name]),
                floor_ms=_rounded(floor_s, 1e3),
                over_floor=_rounded(floor_s and median[name] / floor_s),
                slower=_rounded(median[name] / median[ours]),
            )
            for name, times in samples.items()
        ]
        self.report(rows + [Row(workload, self.parameters, self.device.type, *item) for item in failed.items()])

    def _time(self, calls: Candidates, inputs: Inputs) -> dict[str, list[float]]:
        """Seconds a call: a sample a round; one alone for a candidate whose rounds would use up the time for all."""
        at_least, at_most, budget = (3, 5, 0.3) if self.quick else (7, 50, 1.0 if self.device.type == "cuda" else 4.0)
        once = {name: self._sample(call, inputs, 0, 1) for name, call in calls.items()}
        slow = {name for name in calls if once[name] * at_least > budget}
        samples: dict[str, list[float]] = {name: [once[name]] if name in slow else [] for name in calls}
        calls = {name: call for name, call in calls.items() if name not in slow}
        repeats = {name: max(1, int(MIN_SAMPLE_S / once[name])) for name in calls}
        order, shuffle = list(calls), random.Random(0).shuffle
        begin = time.perf_counter()
        for round_ in range(at_most):
            shuffle(order)
            for name in order:
                samples[name].append(self._sample(calls[name], inputs, round_, repeats[name]))
            if round_ + 1 >= at_least and time.perf_counter() - begin > budget:
                break
        return samples

    def _sample(self, call: Callable[..., Any], inputs: Inputs, first: int, repeats: int) -> float:
        torch.set_num_threads(self.threads)  # some rivals leave it changed
        wait(self.device)
        begin = time.perf_counter()
        for i in range(first, first + repeats):
            call(*inputs[i % len(inputs)])
        wait(self.device)
        return (time.perf_counter() - begin) / repeats

    def _graph_s(self, call: Callable[..., Any], inputs: Inputs) -> float | None:
        """Seconds a call within a CUDA graph; None for a call that waits for the device, as reference paths do."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for arguments in inputs:
                    call(*arguments)
        except RuntimeError:
            wait(self.device)
            return None
        once = self._sample(graph.replay, [()], 0, 1)
        repeats = max(1, int(MIN_SAMPLE_S / once))
        return statistics.median(self._sample(graph.replay, [()], 0, repeats) for _ in range(7)) / len(inputs)


def rotated(make: Callable[[], tuple[Any, ...]], device: torch.device) -> list[tuple[Any, ...]]:
    """Inputs to take in turn: three, or on a GPU as many as its cache cannot hold."""
    inputs = [make() for _ in range(3)]
    if device.type == "cuda":
        size = sum(t.numel() * t.element_size() for t in inputs[0] if isinstance(t, Tensor))
        wanted = 2 * torch.cuda.get_device_properties(device).L2_cache_size // size + 1
        inputs += [make() for _ in range(3, min(wanted, 32))]
    return inputs


def with_backward(call: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and backward: the gradients of the sum of the first output, by the inputs of floating point."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        arguments = tuple(
            a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
        )
        outputs = call(*arguments)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return torch.autograd.grad(first.sum(), [a for a in arguments if isinstance(a, Tensor) and a.requires_grad])

    return run


def relative_error(result: Any, ours: Any) -> float:
    """The largest |a - b| / |b| over pairs of tensors, by their norms."""
    pairs = zip(result, ours, strict=True) if isinstance(result, (tuple, list)) else [(result, ours)]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


def within(tolerance: float) -> Callable[[Any, Any], str]:
    """A check by relative error."""

    def check(result: Any, ours: Any) -> str:
        error = relative_error(result, ours)
        assert error <= tolerance, f"relative error {error:.1e}"
        return "=" if error == 0 else f"error {error:.0e}"

    return check


def _rounded(value: float | None, factor: float = 1.0) -> float | None:
    return None if value is None else float(f"{value * factor:.4g}")
