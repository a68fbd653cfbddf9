"""Point-cloud operators: C++ on the CPU, CUDA and Triton on NVIDIA GPUs, plain PyTorch everywhere else."""

from jointmae.ops.checks import check_finite
from jointmae.ops.farthest_point_sample import farthest_point_sample
from jointmae.ops.project_points import Projection, project_points

__all__ = ["Projection", "check_finite", "farthest_point_sample", "project_points"]
