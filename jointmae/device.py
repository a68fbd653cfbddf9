"""Which device to run on, and what its memory says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator

import torch

from jointmae.errors import OutOfMemoryError, UsageError


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU, or the CPU. Raises UsageError for one that is not there.

    A GPU without a number is the first one, and of processes that torchrun started each one's own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(" device type at start")[0].split(". ")[0]
        raise UsageError(f"--device {name} cannot be used: {reason}") from error
    return device


def memory_bytes(device: torch.device) -> int:
    """The most memory that the run has held: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, for the whole process: each step asks for the same blocks again.

    Otherwise blocks from 32 MiB on go back to the system and come again page by page, which takes up to a quarter of a
    step (docs/cpu.md). Not where the address space is limited: what is kept in pieces is then missing for what wants to
    be in one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    import resource  # not on Windows

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # <malloc.h>
    allocator = ctypes.CDLL(None)
    allocator.mallopt(mmap_threshold, 2**30)
    allocator.mallopt(trim_threshold, 2**31 - 1)
    allocator.mallopt(mmap_max, 0)


def return_freed_memory(device: torch.device) -> None:
    """Gives back what is kept for later, after an attempt that ran out of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Also of PyTorch's CPU allocator, which has no exception class of its own, and of our compiled module."""
    said = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "ALLOC_FAILED",
        "could not create a primitive",
    )
    says_so = any(words in str(error) for words in said)  # the last is all that oneDNN says
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (isinstance(error, RuntimeError) and says_so)


@contextlib.contextmanager
def out_of_memory_errors(where: str, advice: str) -> Iterator[None]:
    """Turns what a device says when its memory is full into an OutOfMemoryError that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {where}. {advice}") from error
