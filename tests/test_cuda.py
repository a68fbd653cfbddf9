"""What only a GPU shows: its bits are those of the CPU, and no op waits, leaves its stream or cannot be captured.

That the kernels compute the right thing is tested without one: tests/simt/.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from jointmae.data import load
from jointmae.model import JointMAE
from jointmae.ops import native
from jointmae.pretraining import Pretraining
from jointmae.recipes import train_config
from jointmae.step import Step
from tests.models import micro_config
from tests.op_cases import equal, every_op
from tests.test_downstream_step import make_step

pytestmark = pytest.mark.skipif(native.cuda is None or not torch.cuda.is_available(), reason="needs a GPU")

NAMES = tuple(every_op(torch.device("cpu"))) if native.kernels is not None else ()
SUMMED = ("interpolate", "attention")  # sums and exponentials of PyTorch, which differ between devices


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_cpu(gpu, name):
    call, inputs = every_op(gpu)[name]
    results = [result.cpu() for result in call(*inputs)]
    call, inputs = every_op(torch.device("cpu"))[name]
    wanted = call(*inputs)
    if any(word in name for word in SUMMED):
        # float32 alone is 3e-5 away from float64, in gradients of up to 75
        torch.testing.assert_close(tuple(results), wanted, rtol=1e-5, atol=1e-4)
    else:
        assert equal(results, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_on_a_second_run(gpu, name):
    call, inputs = every_op(gpu)[name]
    assert equal(call(*inputs), call(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_waits_for_nothing(gpu, name):
    call, inputs = every_op(gpu)[name]
    call(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_current_stream(gpu, name):
    """The inputs are made on a side stream behind work of many milliseconds: a kernel elsewhere would be too early."""
    call, inputs = every_op(gpu)[name]
    wanted = call(*inputs)
    stream = torch.cuda.Stream(gpu)
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(tensor) for tensor in inputs]
        big = torch.randn(4096, 4096, device=gpu)
        for _ in range(20):
            big = (big @ big).clamp(-1, 1)
        for tensor, values in zip(late, inputs, strict=True):
            tensor.copy_(values)
        results = call(*late)
    stream.synchronize()
    assert equal(results, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_can_be_captured_in_a_graph(gpu, name):
    call, inputs = every_op(gpu)[name]
    held = [tensor.clone() for tensor in inputs]
    warm_up = torch.cuda.Stream(gpu)
    warm_up.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(warm_up):
        call(*held)
    warm_up.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(*held)
    for tensor, values in zip(held, inputs, strict=True):
        tensor.copy_(values * 0.5 + 0.25)
    graph.replay()
    torch.cuda.synchronize()
    assert equal(results, call(*held))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_device_of_its_tensors(name):
    second = torch.device("cuda", 1)
    call, inputs = every_op(second)[name]
    results = call(*inputs)
    assert all(result.device == second for result in results) and torch.cuda.current_device() == 0


# ---- a step of training ----

IDS = torch.arange(8)


def training_step(device: torch.device, **changes: object) -> Step:
    config = dataclasses.replace(train_config("tiny"), model=micro_config(), precision="fp32", **changes)
    model = JointMAE(config.model, seed=0).to(device).train()
    return Step(Pretraining(model, config), load("furniture").to(device))


def test_a_step_waits_for_nothing(gpu):
    step, ids = training_step(gpu, compile="off", clip_grad=1.0, accumulate=2), IDS.to(gpu)
    step.run(ids, 0, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(ids, 1, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_downstream_step(gpu, kind):
    """It waits for nothing, and is the same compiled and recorded."""
    eager, compiled = (make_step(kind, gpu, precision="fp32", compile=mode) for mode in ("off", "on"))
    for number in range(6):
        ids = (IDS + 8 * number).to(gpu)
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            wanted = eager.run(ids, number, 1e-3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(compiled.run(ids, number, 1e-3)[[0, 2]], wanted[[0, 2]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_compiled_step_is_the_same(gpu, accumulate, cuda_graphs):
    """With its record of kernels replayed and with none, and with a diagnosis between steps."""
    compiled = training_step(gpu, compile="on", cuda_graphs=cuda_graphs, accumulate=accumulate)
    eager = training_step(gpu, compile="off")
    for number in range(6):
        ids = (IDS + 8 * number).to(gpu)
        if number in (0, 4):
            assert compiled.diagnose(ids, number) == pytest.approx(eager.diagnose(ids, number), rel=1e-3)
        torch.testing.assert_close(
            compiled.run(ids, number, 1e-3),
            eager.run(ids, number, 1e-3),
            rtol=1e-3,
            atol=1e-4,  # sums of six steps in another order
        )


def test_a_step_is_that_of_the_cpu(gpu):
    ours, theirs = training_step(gpu, compile="off"), training_step(torch.device("cpu"), compile="off")
    first, second = ours.run(IDS.to(gpu), 0, 1e-3).cpu(), theirs.run(IDS, 0, 1e-3)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)  # TF32 is off, sums are in another order
