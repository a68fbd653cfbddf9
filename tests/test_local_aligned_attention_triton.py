"""The Triton kernels of local_aligned_attention without a GPU: right by Triton's interpreter, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from jointmae.ops import align, local_aligned_attention
from jointmae.ops.native import NativeKernelsWarning
from tests.conftest import ROOT

op: Any = import_module("jointmae.ops.local_aligned_attention")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
POINTERS = {"lse": "*fp32", "delta": "*fp32", "cell": "*i32", "order": "*i32", "guide": "*i32"}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
STRIDES = ("stride_b", "stride_h", "stride_l")  # multiples of 16, as Triton finds at run time


@needs_triton
def test_interpreted():
    """The numbers: tests/interpreted_local_aligned_attention.py, in a process that interprets kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/interpreted_local_aligned_attention.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


def compile_for(folder: Path, kernel: Any, capability: int, dtype: torch.dtype, cut: Any, **constants: Any) -> str:
    """Compiles a kernel; what it uses. Fails if its registers are not enough.

    A few of them may go to memory although there are more: so ptxas fits one program more on a multiprocessor. And a
    few of float32 with d 96 and 128, which is for exactness, not for speed.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"enable_fp_fusion": True}
    if cut is not None:
        constants |= {"ROWS": cut.rows, "COLUMNS": cut.columns}
        options |= {"num_warps": cut.num_warps, "num_stages": cut.num_stages}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        number = name in (*STRIDES, "h", "L", "num_3d")
        signature[name] = "constexpr" if name in constants else "i32" if number else POINTERS.get(name, TYPES[dtype])
        if name in STRIDES or (not number and name not in constants):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= 99 << 10, "more shared memory than sm_86 and sm_120 have"
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found is not None, usage
    stack_allowed = 64 if int(found[1]) < 255 or dtype == torch.float32 and constants.get("D", 0) > 64 else 0
    assert int(found[2]) <= stack_allowed and int(found[3]) == 0, f"{cut} {constants}: {usage}"
    return f"{found[1]} registers, {found[2]} bytes of stack, {compiled.metadata.shared} of shared memory"


def launches(L: int, d: int, dtype: torch.dtype) -> list[tuple[str, dict[str, Any]]]:
    """The kernels that a call with L tokens and its gradient launch."""
    common = {"GLOBAL_2D": False, "GLOBAL_3D": False, "D": d, "HOW": "order" if L > op.FEW_TOKENS else "cell"}
    parts = ("q", "kv") if L > op.FEW_TOKENS else ("both",)
    return [("_forward_kernel", common), *(("_backward_kernel", {**common, "PART": part}) for part in parts)]


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@needs_triton
@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(("L", "d"), [(20, 16), (65, 64), (700, 64)])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_for_gpus_without_spilling(request, tmp_path, capability, L, d):
    """What the encoders of `tiny` and `paper` use, and many tokens; with --every-tile all that the kernels are for."""
    from jointmae.ops import local_aligned_attention_triton as kernels

    everything = request.config.getoption("--every-tile")
    for dtype in TYPES if everything else (torch.bfloat16,):
        for dim in op._KERNEL_DIMS if everything else (d,):
            for name, constants in launches(L, dim, dtype):
                cut = kernels.tiles(L, dim, dtype)
                used = compile_for(tmp_path, getattr(kernels, name), capability, dtype, cut, **constants)
                print(f"sm_{capability} L {L} d {dim} {dtype} {name} {constants.get('PART', '')}: {used}")


@needs_triton
@pytest.mark.usefixtures("no_cache")
def test_float32_compiles_without_spilling(tmp_path):
    from jointmae.ops import local_aligned_attention_triton as kernels

    for name, constants in launches(65, 64, torch.float32):
        cut = kernels.tiles(65, 64, torch.float32)
        compile_for(tmp_path, getattr(kernels, name), 90, torch.float32, cut, **constants)
    compile_for(tmp_path, kernels._order_kernel, 90, torch.float32, None, ROWS=16, COLUMNS=128)


def test_triton_is_not_needed(run_python):
    """Not to import jointmae, nor for its CPU path; importing it does not import Triton."""
    code = """
import sys
from jointmae import ops
import torch
print("triton" in sys.modules)
sys.modules["triton"] = None
q = torch.rand(1, 1, 5, 16, requires_grad=True)
ops.local_aligned_attention(q, q, q, torch.zeros(1, 5, dtype=torch.int32), 2).sum().backward()
print(tuple(q.grad.shape))
"""
    done = run_python(code)
    assert done.stdout.splitlines() == ["False", "(1, 1, 5, 16)"], done.stderr


@pytest.mark.parametrize(("L", "ordered"), [(20, False), (200, True)])
def test_path_on_a_gpu(monkeypatch, L, ordered):
    """Which ops a CUDA tensor goes through, as seen by tensors without data."""
    monkeypatch.setattr(op, "_HAS_TRITON", True)
    ran = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.append(func.name().removeprefix("jointmae::local_aligned_attention_"))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Log():
        q = torch.empty(2, 3, L, 64, dtype=torch.bfloat16, device="cuda")
        alignment = align(torch.empty(2, L, dtype=torch.int32, device="cuda"), 9)
        assert (alignment.bias, alignment.order is not None) == (None, ordered)
        out = local_aligned_attention(q, q, q, alignment)
        assert out.shape == q.shape and out.dtype == q.dtype and out.device == q.device
    assert [name for name in ran if "::" not in name] == ["order"] * ordered + ["forward"]


def test_one_warning_without_triton(monkeypatch):
    monkeypatch.setattr(op, "_HAS_TRITON", False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, attn_mask: q)
    op._warn_no_triton.cache_clear()
    with FakeTensorMode(), pytest.warns(NativeKernelsWarning, match="Triton is not installed") as caught:
        q = torch.empty(1, 1, 5, 16, device="cuda")
        cell = torch.empty(1, 5, dtype=torch.int32, device="cuda")
        for _ in range(2):
            local_aligned_attention(q, q, q, cell, 2, ("global", "global"))
    assert len(caught) == 1
