"""Which device to run on, and what its memory says."""

from __future__ import annotations

import sys

import torch

from jointmae.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU. Raises UsageError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def memory_bytes(device: torch.device) -> int:
    """The most memory that the run has held: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: RuntimeError) -> bool:
    """PyTorch's CPU allocator has no exception class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
