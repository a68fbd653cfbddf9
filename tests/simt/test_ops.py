"""The ops' own tests, all those that take a `device`, run once more with the CUDA kernels on the executor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tests.test_chamfer_distance
import tests.test_farthest_point_sample
import tests.test_group
import tests.test_knn
import tests.test_knn_interpolate
import tests.test_project_points
from jointmae.ops import registry

MODULES = (
    tests.test_chamfer_distance,
    tests.test_farthest_point_sample,
    tests.test_group,
    tests.test_knn,
    tests.test_knn_interpolate,
    tests.test_project_points,
)


def _tests_of_devices() -> dict[str, Callable[..., Any]]:
    found = {}
    for module in MODULES:
        op = module.__name__.split(".test_")[1]
        for name, function in vars(module).items():
            if name.startswith("test_") and "device" in inspect.signature(function).parameters:
                found[f"test_{op}_{name.removeprefix('test_')}"] = function
    return found


globals().update(_tests_of_devices())


def test_every_op_has_a_cuda_kernel():
    assert set(registry.cuda_implementations) == {
        "chamfer_distance",
        "chamfer_distance_backward",
        "farthest_point_sample",
        "group",
        "group_backward",
        "knn",
        "knn_backward",
        "project_points",
        "project_points_backward",
    }
