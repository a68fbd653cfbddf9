"""The look for NaN and infinity, in kernels of every instruction set."""

from __future__ import annotations

import pytest

from jointmae.ops import native
from tests.op_cases import isa_levels

if native.kernels is None:
    pytest.skip("needs native kernels", allow_module_level=True)

LOOK = """
import itertools, math, torch
from jointmae.ops.native import kernels

def finite(values, threads):
    return kernels.all_finite(values.data_ptr(), values.numel(), values.dtype == torch.float64, threads)

RANGE = 1 << 18  # what one thread looks at
for dtype, count in itertools.product((torch.float32, torch.float64), (0, 1, 7, 16, 31, RANGE + 5, 3 * RANGE + 1)):
    largest = torch.finfo(dtype).max
    values = torch.tensor([0.0, -0.0, largest, -largest, 1e-310, 1.0], dtype=dtype).repeat(count // 6 + 1)[:count]
    places = {0, count // 2, RANGE - 1, RANGE, count - 1}
    for threads in (1, 2):
        assert finite(values, threads), (dtype, count)
        for place, bad in itertools.product(places, (math.nan, -math.nan, math.inf, -math.inf)):
            if 0 <= place < count:
                before, values[place] = values[place].clone(), bad
                assert not finite(values, threads), (dtype, count, place, bad)
                values[place] = before
"""


@pytest.mark.parametrize("level", isa_levels())
def test_finds_what_is_not_finite(run_python, level):
    done = run_python(LOOK, JOINTMAE_ISA=level)
    assert done.returncode == 0, done.stderr
