"""Point-cloud operators: C++ on the CPU, CUDA and Triton on NVIDIA GPUs, plain PyTorch everywhere else."""

from jointmae.ops.chamfer_distance import chamfer_distance
from jointmae.ops.checks import check_finite
from jointmae.ops.farthest_point_sample import farthest_point_sample
from jointmae.ops.group import group
from jointmae.ops.knn import knn
from jointmae.ops.knn_interpolate import knn_interpolate
from jointmae.ops.local_aligned_attention import Alignment, align, local_aligned_attention
from jointmae.ops.project_points import Projection, project_points

__all__ = [
    "Alignment",
    "Projection",
    "align",
    "chamfer_distance",
    "check_finite",
    "farthest_point_sample",
    "group",
    "knn",
    "knn_interpolate",
    "local_aligned_attention",
    "project_points",
]
