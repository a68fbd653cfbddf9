#!/usr/bin/env python3
"""Registers, shared memory, stack and spills of every CUDA kernel; exit code 1 if one spills or has a stack frame.

    python scripts/kernel_resources.py                       # compiles csrc/*/*_cuda.cu for sm_80 and sm_90
    python scripts/kernel_resources.py --all csrc/knn/*.cu   # for every default architecture
    python scripts/kernel_resources.py MODULE.so|WHEEL.whl   # what a built module holds

Sources need nvcc; built files need cuobjdump, of a CUDA toolkit or of Triton's wheel. A stack frame is memory far from
the registers: what spills there, and arrays indexed by what the compiler cannot know. Shared memory is what a kernel
declares, not what a launch asks for; from sm_90 on cuobjdump counts 1 KiB that the system keeps.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90")
NVCC = ["nvcc", *"-std=c++17 -O3 --fmad=false -Werror=all-warnings -Xptxas -v -c".split()]


@dataclass
class Kernel:
    """What one kernel takes on one architecture: registers per thread, bytes of all else; None where it is not said."""

    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int | None = None  # stored and loaded

    @property
    def is_fine(self) -> bool:
        """Whether all its variables are in registers."""
        return not (self.stack or self.spilled)


def of_ptxas(output: str) -> list[Kernel]:
    """The kernels in what `nvcc -Xptxas -v` prints; functions that a kernel calls count as its own."""
    kernels: list[Kernel] = []
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernels.append(Kernel(*match.groups(), spilled=0))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, match.groups())
            kernels[-1].stack += stack
            kernels[-1].spilled = (kernels[-1].spilled or 0) + stores + loads
        elif match := re.search(r"Used (\d+) registers(?:.* (\d+) bytes smem)?", line):
            kernels[-1].registers, kernels[-1].shared = int(match[1]), int(match[2] or 0)
    return kernels


def of_cuobjdump(output: str) -> list[Kernel]:
    """The kernels in what `cuobjdump --dump-resource-usage` prints."""
    kernels, architecture, name = [], "", ""
    for line in output.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r" Function (\w+):", line):
            name = match[1]
        elif match := re.match(r"  REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            kernels.append(Kernel(name, architecture, registers, shared, stack + local))
    return kernels


def compile_sources(sources: list[Path], architectures: tuple[str, ...]) -> list[Kernel]:
    """Compiles each source for each architecture, warnings being errors."""
    kernels: list[Kernel] = []
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            kernels += of_ptxas(
                _run([*NVCC, *targets, f"-I{source.parent.parent}", "-o", f"{folder}/object.o", str(source)])
            )
    return kernels


def read_built(path: Path) -> list[Kernel]:
    """The kernels in an object file, a module or a wheel that has one."""
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None and (triton := find_spec("triton")) is not None and triton.origin is not None:
        cuobjdump = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if cuobjdump is None:
        raise SystemExit("kernel_resources: no cuobjdump: put one on PATH, or `pip install triton`, which carries it")
    if path.suffix != ".whl":
        return of_cuobjdump(_run([cuobjdump, "--dump-resource-usage", str(path)]))
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as wheel:
        (module,) = [name for name in wheel.namelist() if name.endswith(".so")]
        return read_built(Path(wheel.extract(module, folder)))


def default_architectures() -> tuple[str, ...]:
    """Those of CMakeLists.txt that this nvcc knows."""
    match = re.search(r"foreach\(architecture ([\d ]+)\)", (ROOT / "CMakeLists.txt").read_text())
    assert match is not None, "CMakeLists.txt no longer lists its architectures as this script expects"
    known = _run(["nvcc", "--list-gpu-arch"]).split()
    return tuple(number for number in match[1].split() if f"compute_{number}" in known)


def table(kernels: list[Kernel]) -> Iterator[str]:
    """Lines for people; a kernel that is not fine is marked."""
    yield f"{'registers':>9} {'shared':>7} {'stack':>6} {'spilled':>7}  arch    kernel"
    for kernel, name in zip(kernels, _demangled([kernel.name for kernel in kernels]), strict=True):
        spilled = "-" if kernel.spilled is None else kernel.spilled
        numbers = f"{kernel.registers:>9} {kernel.shared:>7} {kernel.stack:>6} {spilled:>7}"
        yield f"{numbers}  {kernel.architecture:6}  {name}{'' if kernel.is_fine else '   <- not in registers'}"


def _demangled(names: list[str]) -> list[str]:
    """Names as they are written in the sources, without parameters."""
    if shutil.which("c++filt") is None:
        return names
    lines = _run(["c++filt", *names]).splitlines() if names else []
    plain = [re.sub(r"^void |jointmae::|\(anonymous namespace\)::", "", line) for line in lines]
    return [re.sub(r"\([^()]*\)$", "", line) for line in plain]


def _run(command: list[str]) -> str:
    """What a command prints, errors included; if it fails, that is printed and ends this script too."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"kernel_resources: {command[0]} is not on PATH") from None
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SystemExit(f"kernel_resources: failed: {' '.join(command)}")
    return done.stdout


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help=".cu files, or one built module, object file or wheel")
    parser.add_argument("--all", action="store_true", help="compile for every default architecture")
    args = parser.parse_args()
    sources = args.files or sorted((ROOT / "csrc").glob("*/*_cuda.cu"))
    if sources[0].suffix == ".cu":
        kernels = compile_sources(sources, default_architectures() if args.all else ARCHITECTURES)
    else:
        kernels = [kernel for file in sources for kernel in read_built(file)]
    print("\n".join(table(kernels)))
    bad = sum(not kernel.is_fine for kernel in kernels)
    print(f"{len(kernels)} kernels, {bad} with a spill or a stack frame")
    return 1 if bad or not kernels else 0  # no kernels: not what was to be looked at


if __name__ == "__main__":
    sys.exit(main())
