"""The same pre-training step as research code of the Point-MAE family is written, in plain PyTorch: naive, but fair.

What it does as they do: a `Dataset` whose clouds are subset, scaled, shifted and centred one by one in NumPy, and a
`DataLoader`; farthest point sampling as a Python loop, neighbours by `cdist` and `topk`, neighbourhoods by advanced
indexing; mini-PointNets over gathered neighbours, with the global feature expanded and joined to each of them; boolean
masks of tokens; attention with a mask of L x L; depth maps by scatter; Chamfer distance from full matrices of
distances; AdamW as PyTorch has it by default; `loss.item()` every step.

What makes it fair: same weights, losses, batch size, threads and precision; nothing is computed that the step does
not need; and where plain PyTorch has several usual ways, the fastest of them on a CPU. The shared MLPs are linear
layers and not `Conv1d`, which takes twice the time; Chamfer's products are one `bmm`; masks are sorted noise, as in
MAE, instead of a shuffle in NumPy for each cloud; only hidden tokens reach the specific decoders. Attention, with its
mask as a bias, is `scaled_dot_product_attention`, except in bfloat16 on a CPU, where explicit products take down to an
eighth of its time.

On a GPU the family has CUDA extensions for sampling, neighbours and Chamfer distance, and this has not: there it is the
step of a user who cannot build them.

B clouds, N points, F fine centres, G 3D tokens, k neighbours, P 2D tokens, L tokens, C channels, V views, S image side.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.naive_geometry import (
    chamfer_distance,
    depth_maps,
    farthest_point_sample,
    index_points,
    knn,
    look_at,
    tokens_under,
)
from jointmae.config import ModelConfig, TrainConfig
from jointmae.data import PointClouds
from jointmae.model import JointMAE
from jointmae.model.embed import MiniPointNet, patches_of
from jointmae.model.masking import Draws
from jointmae.model.projection import choose_view, world_to_cam
from jointmae.model.transformer import Block, CrossBlock, drop_path
from jointmae.optimizer import parameter_groups

# Choices of the method that are written out below; a preset that makes others is refused.
CHOICES = {
    "modality": "joint",
    "normalize_input": True,
    "center_ratio": False,
    "hierarchy_3d": True,
    "hierarchy_2d": True,
    "depth_mode": "zbuffer",
    "smooth_depth": False,
    "color_render": False,
    "mask_coupling": "independent",
    "no_leak_3d": False,
    "no_leak_2d": False,
    "attention_2d_to_3d": "local",
    "attention_3d_to_2d": "local",
    "align_cells": 1,
    "position_every_block": True,
    "shared_decoder": True,
    "decoder_attention": "global",
    "modality_token_in_decoder": False,
    "normalize_patches": False,
    "cross_mode": "soft",
    "cross_points": "with_visible",
    "cross_target": "groups",
}


# ---- data


def augment(cloud: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """One cloud [N, 3], scaled and shifted by axis, then centred and scaled into the unit sphere."""
    cloud = cloud * scale + shift
    cloud = cloud - cloud.mean(axis=0)
    return cloud / np.sqrt((cloud**2).sum(axis=1)).max()


class CloudDataset(Dataset):
    """Clouds and their up axes, one at a time."""

    def __init__(self, clouds: PointClouds, config: TrainConfig) -> None:
        assert config.augment == "scale+shift"
        self.points, self.up = clouds.points.cpu().numpy(), clouds.up.cpu().numpy()
        self.num_points = config.model.num_points
        assert self.points.shape[1] >= self.num_points

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        cloud = self.points[i]
        if len(cloud) > self.num_points:
            cloud = cloud[np.random.permutation(len(cloud))[: self.num_points]]
        scale, shift = np.random.uniform(2 / 3, 3 / 2, 3), np.random.uniform(-0.2, 0.2, 3)
        return augment(cloud, scale.astype(np.float32), shift.astype(np.float32)), self.up[i]


def endless_batches(clouds: PointClouds, config: TrainConfig, device: torch.device) -> Iterator[list[Tensor]]:
    """Points [B, N, 3] and up axes [B, 3]; drawn with replacement, so that a batch may be larger than the set."""
    dataset = CloudDataset(clouds, config)
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=2**40),
        num_workers=min(8, os.cpu_count() or 1) if on_gpu else 0,  # on a CPU the step itself needs the cores
        pin_memory=on_gpu,
    )
    return iter(loader)


def random_draws(config: ModelConfig, B: int, device: torch.device) -> Draws:
    """All random numbers of one forward pass, from PyTorch's generator."""
    shapes = ((3,), (config.num_centers[1],), (config.num_2d_tokens,), (config.num_layers, 2))
    return Draws(*(torch.rand(B, *shape, device=device) for shape in shapes))


# ---- model


class PointNet(nn.Module):
    """Neighbours' features and coordinates to a token: what `MiniPointNet` computes, without its rearrangements."""

    def __init__(self, ours: MiniPointNet) -> None:
        super().__init__()
        self.first = _joined(ours.feature.weight, ours.offset.weight, ours.offset.bias)
        self.norm1 = ours.norm1.norm
        self.second = ours.second
        self.third = _joined(ours.overall.weight, ours.local.weight, ours.overall.bias)
        self.norm2 = ours.norm2.norm
        self.fourth = ours.fourth
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        """[B, G, k, C], [B, G, k, 3] -> [B, G, C_out]."""
        B, G, k, _ = features.shape
        x = torch.cat([features, offsets], dim=-1).flatten(0, 2)  # [B G k, C + 3]
        x = self.second(self.relu(self.norm1(self.first(x)))).view(B * G, k, -1)
        overall = x.max(dim=1, keepdim=True)[0].expand(-1, k, -1)
        x = torch.cat([overall, x], dim=-1).flatten(0, 1)  # [B G k, 2 C]
        x = self.fourth(self.relu(self.norm2(self.third(x)))).view(B, G, k, -1)
        return x.max(dim=2)[0]


def _joined(first: Tensor, second: Tensor, bias: Tensor) -> nn.Linear:
    """The linear layer over joined vectors whose halves have these weights."""
    weight = torch.cat([first, second], dim=1).detach()
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.detach().clone())
    return layer


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of [B, h, L, C/h]; `bias` [B, 1, L, L] is 0 or -infinity."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias.to(q.dtype)).softmax(-1).to(q.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def self_block(block: Block, x: Tensor, bias: Tensor | None, uniforms: Tensor | None) -> Tensor:
    """The transformer block [B, L, C] -> [B, L, C]."""
    B, L, C = x.shape
    attention = block.attention
    qkv = attention.qkv(block.norm1(x)).reshape(B, L, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    y = attention.proj(attend(qkv[0], qkv[1], qkv[2], bias).transpose(1, 2).reshape(B, L, C))
    x = x + drop_path(y, block.drop_path, None if uniforms is None else uniforms[:, 0])
    return x + drop_path(block.mlp(block.norm2(x)), block.drop_path, None if uniforms is None else uniforms[:, 1])


def cross_block(block: CrossBlock, x: Tensor, memory: Tensor) -> Tensor:
    """The block of a specific decoder: queries [B, L, C], memory [B, M, C] -> [B, L, C]."""
    B, L, C = x.shape
    attention = block.attention
    q = attention.q(block.norm1(x)).reshape(B, L, attention.num_heads, -1).transpose(1, 2)
    kv = attention.kv(block.norm_memory(memory)).reshape(B, -1, 2, attention.num_heads, q.shape[-1])
    kv = kv.permute(2, 0, 3, 1, 4)  # [2, B, h, M, C/h]
    x = x + attention.proj(attend(q, kv[0], kv[1], None).transpose(1, 2).reshape(B, L, C))
    return block.norm(x + block.mlp(block.norm2(x)))


def hide(noise: Tensor, mask_ratio: float) -> Tensor:
    """True [B, L] for the tokens with the largest noise [B, L]."""
    L = noise.shape[1]
    hidden = torch.ones_like(noise, dtype=torch.bool)
    return hidden.scatter(1, noise.argsort(dim=1)[:, : L - math.ceil(mask_ratio * L)], False)


def pick(tokens: Tensor, mask: Tensor) -> Tensor:
    """The tokens [B, L, ...] where `mask` [B, L] is True, as many in each cloud: [B, M, ...]."""
    return tokens[mask].reshape(len(tokens), -1, *tokens.shape[2:])


class Inputs(NamedTuple):
    """A batch made ready."""

    points: Tensor  # [B, N, 3]
    fine_centers: Tensor  # [B, F, 3]
    centers: Tensor  # [B, G, 3]
    fine_neighbors: Tensor  # [B, F, k]
    neighbors: Tensor  # [B, G, k]
    groups: Tensor  # [B, G, k, 3] around the centres, relative to them
    cameras: Tensor  # [B, V, 3, 4]
    images: Tensor  # [B, 1, S, S]
    cells: Tensor  # [B, G] the 2D token under each centre
    hidden_3d: Tensor  # bool [B, G]
    hidden_2d: Tensor  # bool [B, P]


class Losses(NamedTuple):
    """What `NaiveJointMAE.forward` gives."""

    loss: Tensor
    loss_3d: Tensor
    loss_2d: Tensor
    loss_cross: Tensor


class NaiveJointMAE(nn.Module):
    """A copy of a `JointMAE`, its weights and plain layers, with a forward pass as research code has it."""

    def __init__(self, ours: JointMAE) -> None:
        super().__init__()
        for name, value in CHOICES.items():
            assert getattr(ours.config, name) == value, f"not written for {name}={getattr(ours.config, name)}"
        assert ours.config.cross_views > 0
        ours = copy.deepcopy(ours)
        self.config = ours.config
        self.lift = ours.point_embed.lift
        self.fine, self.coarse = PointNet(ours.point_embed.fine), PointNet(ours.point_embed.coarse)
        self.depth_embed = ours.depth_embed
        self.modality_3d, self.modality_2d = ours.modality_3d, ours.modality_2d
        self.mask_token_3d, self.mask_token_2d = ours.mask_token_3d, ours.mask_token_2d
        self.point_position, self.decoder_point_position = ours.point_position, ours.decoder_point_position
        for name in ("depth_position", "decoder_depth_position"):
            position = getattr(ours, name)
            if isinstance(position, nn.Parameter):
                self.register_parameter(name, position)
            else:
                self.register_buffer(name, position)
        self.encoder, self.shared_decoder = ours.encoder, ours.shared_decoder
        self.point_decoder, self.depth_decoder = ours.point_decoder, ours.depth_decoder
        self.point_head, self.pixel_head = ours.point_head, ours.pixel_head

    def forward(self, points: Tensor, up: Tensor, draws: Draws) -> Losses:
        """Losses of unit-sphere points [B, N, 3] whose up axis is `up` [B, 3]."""
        device = points.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            inputs = self.prepare(points, up, draws)
        latent_3d, latent_2d = self.encode(inputs, draws.drop_path)
        pred_groups, pred_patches = self.decode(latent_3d, latent_2d, inputs)
        with torch.autocast(device, enabled=False):
            return self.losses(pred_groups, pred_patches, inputs)

    def prepare(self, points: Tensor, up: Tensor, draws: Draws) -> Inputs:
        config = self.config
        num_fine, num_tokens = config.num_centers
        fine_centers = index_points(points, farthest_point_sample(points, num_fine))
        centers = index_points(fine_centers, farthest_point_sample(fine_centers, num_tokens))
        fine_neighbors = knn(fine_centers, points, config.num_neighbors[0])
        neighbors = knn(centers, fine_centers, config.num_neighbors[1])
        groups = index_points(points, knn(centers, points, config.num_target_neighbors)) - centers[:, :, None]
        cameras = world_to_cam(config, choose_view(config, draws.view.to(points.dtype)), up, config.cross_views)
        images = depth_maps(config, look_at(config, points, cameras[:, :1]), soft=False)
        cells = tokens_under(config, look_at(config, centers, cameras[:, :1]))[:, 0]
        hidden_3d, hidden_2d = (hide(noise, config.mask_ratio) for noise in (draws.mask_3d, draws.mask_2d))
        return Inputs(
            points,
            fine_centers,
            centers,
            fine_neighbors,
            neighbors,
            groups,
            cameras,
            images,
            cells,
            hidden_3d,
            hidden_2d,
        )

    def embed_points(self, inputs: Inputs) -> Tensor:
        """3D tokens [B, G, C]."""
        scale = self.config.group_scale
        points, fine_centers, fine_neighbors = inputs.points, inputs.fine_centers, inputs.fine_neighbors
        offsets = index_points(points, fine_neighbors) - fine_centers[:, :, None]
        x = self.fine(index_points(self.lift(points), fine_neighbors), scale * offsets)  # [B, F, C]
        offsets = index_points(fine_centers, inputs.neighbors) - inputs.centers[:, :, None]
        return self.coarse(index_points(x, inputs.neighbors), scale * offsets) + self.modality_3d

    def encode(self, inputs: Inputs, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the visible tokens of both modalities."""
        visible_3d, visible_2d = ~inputs.hidden_3d, ~inputs.hidden_2d
        B, P = visible_2d.shape
        tokens_3d = pick(self.embed_points(inputs), visible_3d)
        tokens_2d = pick(self.depth_embed(inputs.images) + self.modality_2d, visible_2d)
        x = torch.cat([tokens_3d, tokens_2d], dim=1)  # [B, L, C]
        position_3d = self.point_position(pick(inputs.centers, visible_3d))
        position = torch.cat([position_3d, pick(self.depth_position.expand(B, -1, -1), visible_2d)], dim=1)
        cells_2d = torch.arange(P, device=x.device).expand(B, -1)
        cells = torch.cat([pick(inputs.cells, visible_3d), pick(cells_2d, visible_2d)], dim=1)  # [B, L]
        is_3d = torch.arange(x.shape[1], device=x.device) < tokens_3d.shape[1]
        valid = (cells[:, :, None] == cells[:, None]) | (is_3d[:, None] == is_3d)  # 2D tokens have no cell of -1
        bias = torch.zeros(valid.shape, dtype=x.dtype, device=x.device).masked_fill(~valid, -torch.inf)[:, None]
        for i, block in enumerate(self.encoder.blocks):
            x = self_block(block, x + position, bias, uniforms[:, i] if self.training else None)
        x = self.encoder.norm(x)
        return x[:, : tokens_3d.shape[1]], x[:, tokens_3d.shape[1] :]

    def decode(self, latent_3d: Tensor, latent_2d: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Predicted groups [B, hidden, k, 3], in units of 1 / group_scale, and patches [B, hidden, pixels]."""
        hidden_3d, hidden_2d = inputs.hidden_3d, inputs.hidden_2d
        (B, G), P = hidden_3d.shape, hidden_2d.shape[1]
        masked_3d = self.mask_token_3d.expand(B, G - latent_3d.shape[1], -1)
        masked_2d = self.mask_token_2d.expand(B, P - latent_2d.shape[1], -1)
        positions_2d = self.decoder_depth_position.expand(B, -1, -1)
        x = torch.cat([latent_3d, masked_3d, latent_2d, masked_2d], dim=1)  # [B, G + P, C]
        position_3d = self.decoder_point_position(
            torch.cat([pick(inputs.centers, ~hidden_3d), pick(inputs.centers, hidden_3d)], dim=1)
        )
        position = torch.cat([position_3d, pick(positions_2d, ~hidden_2d), pick(positions_2d, hidden_2d)], dim=1)
        for block in self.shared_decoder.blocks:
            x = self_block(block, x + position, None, None)
        x = self.shared_decoder.norm(x) + position
        decoded_3d = cross_block(self.point_decoder, x[:, latent_3d.shape[1] : G], latent_3d)
        decoded_2d = cross_block(self.depth_decoder, x[:, G + latent_2d.shape[1] :], latent_2d)
        return self.point_head(decoded_3d), self.pixel_head(decoded_2d)

    def losses(self, pred_groups: Tensor, pred_patches: Tensor, inputs: Inputs) -> Losses:
        config, hidden = self.config, inputs.hidden_3d
        pred_groups, pred_patches = pred_groups.to(inputs.points.dtype), pred_patches.to(inputs.points.dtype)
        target = pick(inputs.groups, hidden)  # [B, hidden, k, 3]
        loss_3d = chamfer_distance(pred_groups.flatten(0, 1), config.group_scale * target.flatten(0, 1))
        loss_2d = F.mse_loss(pred_patches, pick(patches_of(inputs.images), inputs.hidden_2d))
        rendered = self.render(pred_groups / config.group_scale, inputs)
        with torch.no_grad():
            wanted = self.render(target, inputs)
        loss_cross = F.mse_loss(rendered, wanted)
        loss = config.loss_weight_3d * loss_3d + config.loss_weight_2d * loss_2d + config.loss_weight_cross * loss_cross
        return Losses(loss, loss_3d, loss_2d, loss_cross)

    def render(self, hidden_groups: Tensor, inputs: Inputs) -> Tensor:
        """Hidden groups [B, hidden, k, 3] and the visible ones as depth maps [B, V, S, S]."""
        visible = pick(inputs.groups + inputs.centers[:, :, None], ~inputs.hidden_3d)
        hidden = hidden_groups + pick(inputs.centers, inputs.hidden_3d)[:, :, None]
        points = torch.cat([visible, hidden], dim=1).flatten(1, 2)  # [B, G k, 3]
        return depth_maps(self.config, look_at(self.config, points, inputs.cameras), soft=True)


class NaiveStep:
    """The loop of such code, a step a call."""

    def __init__(self, config: TrainConfig, clouds: PointClouds, device: torch.device) -> None:
        assert config.clip_grad == 0 and config.accumulate == 1
        self.model = NaiveJointMAE(JointMAE(config.model, seed=config.seed)).to(device).train()
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
        self.device, self.batches = device, endless_batches(clouds, config, device)

    def __call__(self) -> float:
        """One step; returns its loss."""
        points, up = (tensor.to(self.device, non_blocking=True) for tensor in next(self.batches))
        draws = random_draws(self.model.config, len(points), self.device)
        with self.autocast:
            loss = self.model(points, up, draws).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
