"""What a measurement was made on, and the most that this machine can do: every time is also read against that floor."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jointmae.build_info import source_hash

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "JOINTMAE_COMMIT"  # says which it is where the checkout came without its history
# FLOP/s of dense matrix products by data sheet, and by the driver's name of the GPU: bfloat16, TF32, float32.
DATA_SHEETS = {
    "NVIDIA H200": (989e12, 494e12, 67e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494e12, 67e12),
}
LANES = 128  # float32 lanes of a multiprocessor, from capability 8.6 on, and of 9.0; of 8.0 half
PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "triton", "numba", "fpsample", "torch-fps", "torch-quickfps"),
    *("torch-quickfps-cu130", "torch-cluster", "pytorch3d", "pointnet2-ops", "chamferdist", "pykdtree", "pynanoflann"),
    *("small-gicp", "point-cloud-utils", "faiss-cpu", "open3d-cpu"),
)


def describe_run(threads: int) -> dict[str, Any]:
    """Where, when and with what: the head of a results file."""
    gpu = torch.cuda.is_available()
    return {
        "run": uuid.uuid4().hex,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
        or os.environ.get(COMMIT, "unknown"),
        "csrc": source_hash(),
        "cpu": _cpu_name(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": _nvidia_smi("driver_version") if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: number for name in PACKAGES if (number := _version(name)) is not None},
    }


@dataclass(frozen=True)
class Work:
    """What an op must do at the least, counted by hand.

    `num_bytes` are its inputs and outputs, once each. The arithmetic is that of the brute-force method, which a method
    that prunes can undercut: `flops` for the rate that is printed and for the floor of a CPU, `lane_ops` (instructions
    times threads) for the floor of a GPU. `cycles(num_sms)` is the latency of steps that wait for one another on a GPU.
    """

    num_bytes: float | None = None
    flops: float | None = None
    lane_ops: float | None = None
    cycles: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at most, from memory (a cache can be faster); a rate that is not known is None."""

    bytes_per_s: float  # a large copy, read and written, measured
    flops_per_s: float | None  # CPU: a float32 matrix product, measured with as many threads as the ops have
    num_sms: int | None = None
    clock_hz: float | None = None  # the highest that the driver allows

    def floor_s(self, work: Work) -> float | None:
        """The time that `work` takes at these rates, its parts going on at once; None if nothing was counted."""
        parts = [work.num_bytes / self.bytes_per_s] if work.num_bytes else []
        if work.flops and self.flops_per_s:
            parts.append(work.flops / self.flops_per_s)
        if self.num_sms and self.clock_hz:
            if work.lane_ops:
                parts.append(work.lane_ops / (self.num_sms * LANES * self.clock_hz))
            if work.cycles:
                parts.append(work.cycles(self.num_sms) / self.clock_hz)
        return max(parts, default=None)


@cache
def ceilings(device: torch.device, threads: int) -> Ceilings:
    """Measured when first asked for; `threads` are the CPU's."""
    if device.type == "cuda":
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        megahertz = _nvidia_smi("clocks.max.sm")  # "[N/A]" on some virtual machines
        clock_hz = 1e6 * float(megahertz) if megahertz.isdecimal() else None
        return Ceilings(_copy_rate(device, 2**28), None, num_sms, clock_hz)
    torch.set_num_threads(threads)
    size = 1536
    a = torch.randn(size, size)
    return Ceilings(_copy_rate(device, 2**25), 2 * size**3 / _best_s(lambda: a @ a, device))


@cache
def matrix_peak(device: torch.device, dtype: torch.dtype, threads: int) -> tuple[float, str]:
    """The most FLOP/s of matrix products of `dtype`, and where that is from: a data sheet, or a large product here."""
    if device.type == "cuda" and torch.cuda.get_device_name(device) in DATA_SHEETS:
        bf16, tf32, fp32 = DATA_SHEETS[torch.cuda.get_device_name(device)]
        if dtype == torch.bfloat16:
            return bf16, "data sheet"
        return (fp32 if torch.get_float32_matmul_precision() == "highest" else tf32), "data sheet"
    torch.set_num_threads(threads)
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / _best_s(lambda: a @ a, device), f"measured, {size}^3"


def _copy_rate(device: torch.device, num_floats: int) -> float:
    a, b = torch.randn(num_floats, device=device), torch.empty(num_floats, device=device)
    return 8 * num_floats / _best_s(lambda: b.copy_(a), device)


def _best_s(call: Callable[[], Any], device: torch.device) -> float:
    def seconds() -> float:
        begin = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - begin

    return min(seconds() for _ in range(6))


def wait(device: torch.device) -> None:
    """Returns when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def add_run(path: Path, run: dict[str, Any]) -> None:
    """Puts a run last in the results file, in place of what it wrote there earlier."""
    earlier = json.loads(path.read_text()) if path.exists() else []
    earlier = [one for one in earlier if one["run"] != run["run"]]
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps([*earlier, run], indent=1) + "\n")
    os.replace(partial, path)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _nvidia_smi(field: str) -> str:
    return _output(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]).partition("\n")[0]


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
