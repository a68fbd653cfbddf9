"""Every instruction set gives the same bits, and no copy of a kernel leaks into the code for another processor."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.op_cases import isa_levels

RUN_ALL = """
import hashlib, torch
from jointmae import ops
from tests.op_cases import KINDS, clouds

digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    for kind in KINDS:
        for N in (17, 300, 2100):
            points, queries = clouds(kind, 2, N, "cpu", dtype), clouds(kind, 2, 11, "cpu", dtype, seed=1)
            leaf = points.clone().requires_grad_()
            sq_dists, indices = ops.knn(queries, leaf, 9)
            d_xy, d_yx = ops.chamfer_distance(queries, leaf, reduction="none")
            groups = ops.group(leaf, indices)
            (sq_dists.mean() + d_xy.mean() + d_yx.mean() + groups.mean()).backward()
            samples = ops.farthest_point_sample(points, 9)
            for tensor in (sq_dists, indices, d_xy, d_yx, groups, leaf.grad, samples):
                digest.update(tensor.detach().numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_at_every_level(run_python):
    levels = isa_levels()
    if len(levels) < 2:
        pytest.skip("needs native kernels and a processor with AVX2")
    digests = set()
    for level in levels:
        done = run_python(RUN_ALL, JOINTMAE_ISA=level)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_unknown_level(run_python):
    if not isa_levels():
        pytest.skip("needs native kernels")
    done = run_python("import jointmae_native; jointmae_native.isa()", JOINTMAE_ISA="sse9")
    assert "ValueError: JOINTMAE_ISA must be scalar, avx2 or avx512, got 'sse9'" in done.stderr


def test_no_shared_symbol_in_the_objects_of_a_level():
    """The linker keeps one copy of a weak symbol: all of them must name their instruction set (csrc/common/isa.h)."""
    objects = [path for path in ROOT.glob("build/temp*/**/*_cpu.cpp.o") if re.search("_avx(2|512).dir", str(path))]
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and a build in place: python setup.py build_ext --inplace")
    listed = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
    weak = re.findall(r"^[0-9a-f]+ [uVvWw] (.*)$", listed, re.MULTILINE)
    assert weak, "an object without a kernel"
    assert [name for name in weak if "Isa" not in name and "DW.ref." not in name] == []


def test_what_ops_share_is_in_common():
    """Two classes of one name in two ops would be one to the linker: each op's own names must be its own."""
    objects = list(ROOT.glob("build/temp*/**/*_avx512.dir/**/*_cpu.cpp.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs nm and a build in place: python setup.py build_ext --inplace")
    common = "\n".join(path.read_text() for path in ROOT.glob("csrc/common/*.h"))
    ops_of: dict[str, set[str]] = {}
    for path in objects:
        listed = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"^[0-9a-f]+ [uVvWw] .*?jointmae::(\w+)", listed, re.MULTILINE):
            ops_of.setdefault(name, set()).add(path.parent.name)
    shared = {name for name, ops in ops_of.items() if len(ops) > 1}
    assert shared, "every op uses Boxes or Scratch"
    assert {name: ops_of[name] for name in shared if not re.search(rf"\b{name}\b", common)} == {}
