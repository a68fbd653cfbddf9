"""Without the compiled module every op works, gives the same result and says once that it is slower."""

from __future__ import annotations

import json

import pytest

from jointmae.ops import native

BLOCKED = "import sys; sys.modules['jointmae_native'] = None\n"
RUN_ALL = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from jointmae import ops
    from tests.op_cases import clouds

    points = clouds("integer", 2, 40, "cpu").requires_grad_()
    queries = clouds("integer", 2, 7, "cpu", seed=1)
    results = [ops.farthest_point_sample(points, 5), *ops.knn(queries, points, 4)]
    results.append(ops.group(points, results[2]))
    results += ops.chamfer_distance(queries, points, reduction="none")
    interpolated = ops.knn_interpolate(queries.double(), points.double(), points)
    sum(result.sum() for result in results).backward()
    lists = [result.tolist() for result in (*results, points.grad)]
    ours = [str(w.message) for w in caught if w.category.__name__ == "NativeKernelsWarning"]
print(json.dumps([lists, interpolated.sum().item(), ours]))
"""


def test_every_op_without_the_module(run_python):
    done = run_python(BLOCKED + RUN_ALL)
    assert done.returncode == 0, done.stderr
    lists, interpolated, warnings = json.loads(done.stdout)
    assert len(warnings) == 1
    assert "native kernels are not used on 'cpu', plain PyTorch is (slower)" in warnings[0]
    assert "with a C++ compiler on the machine, run `pip install .` in the checkout" in warnings[0]
    if native.kernels is None:
        pytest.skip("needs native kernels to compare with")
    expected = json.loads(run_python(RUN_ALL).stdout)
    assert lists == expected[0]
    assert interpolated == pytest.approx(expected[1])
    assert expected[2] == []


def test_bad_indices_and_values_without_the_module(run_python):
    code = """
import torch
from jointmae import ops
for call in (
    lambda: ops.group(torch.rand(1, 4, 3), torch.full((1, 1, 1), 4)),
    lambda: ops.knn(torch.rand(1, 4, 3), torch.full((1, 4, 3), torch.nan), 1),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    done = run_python(BLOCKED + code)
    assert done.stdout.splitlines() == [
        "group: indices must be in [0, N=4), got 4",
        "knn: points must be finite, got nan at [0, 0, 0]",
    ]
