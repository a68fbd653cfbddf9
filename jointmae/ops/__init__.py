"""Point-cloud operators: C++ on the CPU, CUDA and Triton on NVIDIA GPUs, plain PyTorch everywhere else."""

from jointmae.ops.checks import check_finite
from jointmae.ops.farthest_point_sample import farthest_point_sample

__all__ = ["check_finite", "farthest_point_sample"]
