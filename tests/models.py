"""A model small enough for exact comparisons, and batches for it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from jointmae.config import ModelConfig
from jointmae.data import PointClouds, load
from jointmae.model import JointMAE
from jointmae.model.masking import Draws, draw


def micro_config(**changes: Any) -> ModelConfig:
    """16 3D tokens, 16 2D tokens, 24 channels, 2 blocks."""
    config = ModelConfig(
        num_points=256,
        num_centers=(64, 16),
        num_neighbors=(8, 4),
        num_target_neighbors=8,
        embed_dims=(8, 16, 24),
        point_norm="layer",
        image_size=64,
        num_layers=2,
        num_heads=2,
        num_decoder_layers=1,
        drop_path=0.5,
    )
    return dataclasses.replace(config, **changes)


def micro_model(seed: int = 0, **changes: Any) -> JointMAE:
    return JointMAE(micro_config(**changes), seed=seed)


@functools.cache
def furniture() -> PointClouds:
    return load("furniture")


def batch(config: ModelConfig, size: int = 3, epoch: int = 0) -> tuple[Tensor, Tensor, Draws]:
    """Real clouds of the embedded set: points [B, N, 3], up axes [B, 3], random numbers."""
    clouds = furniture().first(config.num_points)
    ids = torch.arange(size)
    return clouds.points[ids], clouds.up[ids], draw(config, 0, epoch, ids)
