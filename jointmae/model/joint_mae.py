"""Joint-MAE: figure 2 of the paper. `forward` is the figure, one named step a line.

B clouds, N points, G 3D tokens, P 2D tokens, C channels, V views, S image side; G' and P' visible, G" and P" hidden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from jointmae import ops
from jointmae.config import ModelConfig, to_dict
from jointmae.model import losses
from jointmae.model.embed import (
    DepthEmbed,
    Geometry,
    group_points,
    hide_points,
    patches_of,
    sample_geometry,
    target_neighbors,
)
from jointmae.model.files import load_model
from jointmae.model.heads import PixelHead, PointHead
from jointmae.model.masking import Draws, Mask, mask_tokens, take, visible_flags
from jointmae.model.point_encoder import Features, PointEncoder
from jointmae.model.projection import DepthMaps, cells_of, choose_view, coarsen_cells, colorize, project, smooth
from jointmae.model.projection import world_to_cam as cameras_of
from jointmae.model.transformer import CrossBlock, PointPosition, Transformer, init_transformer, sincos_position


class Inputs(NamedTuple):
    """A batch made ready: geometry, depth map, masks. No parameter is involved."""

    points: Tensor  # [B, N, 3]
    geometry: Geometry
    groups: Tensor  # [B, G, k, 3], points around each centre, relative to it
    mask_3d: Mask
    cameras: Tensor  # [B, V, 3, 4]
    images: Tensor | None  # [B, channels, S, S], None without the 2D branch
    center_cells: Tensor | None  # [B, G] int32, the 2D token under each centre
    mask_2d: Mask | None


class Latent(NamedTuple):
    """The encoder's output on visible tokens."""

    tokens_3d: Tensor  # [B, G', C]
    tokens_2d: Tensor  # [B, P', C]; P' = 0 without the 2D branch


class Reconstruction(NamedTuple):
    """What `JointMAE.forward` gives."""

    loss: Tensor  # weighted sum of the three (equation 7)
    loss_3d: Tensor
    loss_2d: Tensor
    loss_cross: Tensor
    pred_groups: Tensor  # [B, G", k, 3], relative to the centre, in the cloud's units
    pred_patches: Tensor | None  # [B, P", channels x 256]
    latent: Latent
    inputs: Inputs


class JointMAE(nn.Module):
    """The model of Guo et al., IJCAI 2023: pre-training in `forward`, the encoder for downstream tasks in `encode`."""

    depth_position: Tensor  # [1, P, C]
    decoder_depth_position: Tensor  # [1, P, C]

    def __init__(self, config: ModelConfig | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build_encoder(config)
            self._build_decoder(config)

    def _build_encoder(self, config: ModelConfig) -> None:
        C = config.embed_dim
        branch = PointEncoder.of(config)
        self.point_embed, self.point_position = branch.point_embed, branch.point_position
        self.modality_3d, self.encoder = branch.modality_3d, branch.encoder
        if config.modality == "joint":
            self.depth_embed = DepthEmbed(config)
            self.modality_2d = nn.Parameter(0.02 * torch.randn(1, 1, C))  # M_2D
            self._add_depth_position("depth_position")

    def _build_decoder(self, config: ModelConfig) -> None:
        C = config.embed_dim
        self.mask_token_3d = nn.Parameter(0.02 * torch.randn(1, 1, C))
        self.decoder_point_position = PointPosition(C)
        if config.shared_decoder:
            self.shared_decoder = Transformer(
                C, config.num_decoder_layers, config.num_heads, config.mlp_ratio, 0.0, config.position_every_block
            )
            init_transformer(self.shared_decoder, xavier=True)
        self.point_decoder = CrossBlock(C, config.num_heads, config.mlp_ratio)
        init_transformer(self.point_decoder, xavier=True)
        self.point_head = PointHead(config)
        if config.modality == "joint":
            self.mask_token_2d = nn.Parameter(0.02 * torch.randn(1, 1, C))
            self._add_depth_position("decoder_depth_position")
            self.depth_decoder = CrossBlock(C, config.num_heads, config.mlp_ratio)
            init_transformer(self.depth_decoder, xavier=True)
            self.pixel_head = PixelHead(config)

    def _add_depth_position(self, name: str) -> None:
        """Positions [1, P, C] of the 2D tokens: fixed, or learned from the same start (D 21)."""
        position = sincos_position(self.config.grid_size, self.config.embed_dim)[None]
        if self.config.position_2d == "learned":
            self.register_parameter(name, nn.Parameter(position))
        else:
            self.register_buffer(name, position, persistent=False)

    # ---- pre-training: figure 2 ----

    def forward(self, points: Tensor, up: Tensor, draws: Draws) -> Reconstruction:
        """Masked reconstruction of unit-sphere points [B, N, 3] whose up axis is `up` [B, 3]."""
        inputs = self.prepare(points, up, draws)
        latent = self.encode_visible(inputs, draws.drop_path if self.training else None)
        return self.reconstruct(latent, inputs)

    def reconstruct(self, latent: Latent, inputs: Inputs) -> Reconstruction:
        """What the decoders make of the encoder's output, and the losses (section 3.2)."""
        if self.config.encoder_off:
            latent = Latent(torch.zeros_like(latent.tokens_3d), torch.zeros_like(latent.tokens_2d))
        decoded_3d, decoded_2d = self.decode(latent, inputs)
        pred_groups = self.point_head(decoded_3d)  # [B, G", k, 3]
        pred_patches = None if decoded_2d is None else self.pixel_head(decoded_2d)
        return self.reconstruction(pred_groups, pred_patches, latent, inputs)

    @torch.no_grad()
    def prepare(self, points: Tensor, up: Tensor, draws: Draws) -> Inputs:
        """Sampling, grouping, projection and masks of a batch."""
        config = self.config
        geometry = sample_geometry(config, points)
        groups = group_points(points, target_neighbors(config, points, geometry), geometry.centers)
        cameras = cameras_of(config, choose_view(config, draws.view), up, max(config.cross_views, 1))
        if config.modality == "3d":
            mask_3d, _ = mask_tokens(config, draws, None)
            return Inputs(points, geometry, groups, mask_3d, cameras, None, None, None)
        maps = project(config, points, cameras[:, :1], config.depth_mode)
        cells = cells_of(config, take(maps.pixels[:, 0], geometry.center_ids))  # [B, G]
        mask_3d, mask_2d = mask_tokens(config, draws, cells)
        return Inputs(points, geometry, groups, mask_3d, cameras, self._finish(maps), cells, mask_2d)

    def _finish(self, maps: DepthMaps) -> Tensor:
        """The depth map as the network sees it: [B, channels, S, S]."""
        images = smooth(maps.images) if self.config.smooth_depth else maps.images
        return colorize(images) if self.config.color_render else images

    def encode_visible(self, inputs: Inputs, drop_path: Tensor | None = None) -> Latent:
        """Joint encoder on the visible tokens of both modalities (section 3.2)."""
        tokens_3d, position_3d = self._visible_3d(inputs)
        if inputs.mask_2d is None:
            latent = self.encoder(tokens_3d, position_3d, None, drop_path)
            return Latent(latent, latent[:, :0])
        tokens_2d, position_2d = self._visible_2d(inputs)
        num_3d = tokens_3d.shape[1]
        tokens = torch.cat([tokens_3d, tokens_2d], dim=1)  # [B, G' + P', C]
        position = torch.cat([position_3d, position_2d.to(position_3d.dtype)], dim=1)
        assert inputs.center_cells is not None
        alignment = self._align(inputs.center_cells, inputs.mask_3d.ids_keep, inputs.mask_2d.ids_keep)
        latent = self.encoder(tokens, position, alignment, drop_path)
        return Latent(latent[:, :num_3d], latent[:, num_3d:])

    def _visible_3d(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Visible 3D tokens with their modality token, and their positions: [B, G', C] each."""
        geometry = inputs.geometry
        if self.config.no_leak_3d:
            geometry = hide_points(inputs.points, geometry, visible_flags(inputs.mask_3d))
        tokens = self.point_embed(inputs.points, geometry) + self.modality_3d  # [B, G, C]
        ids = inputs.mask_3d.ids_keep
        return take(tokens, ids), self.point_position(take(geometry.centers, ids))

    def _visible_2d(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Visible 2D tokens with their modality token, and their positions: [B, P', C] each."""
        assert inputs.images is not None and inputs.mask_2d is not None
        visible = visible_flags(inputs.mask_2d) if self.config.no_leak_2d else None
        tokens = self.depth_embed(inputs.images, visible) + self.modality_2d  # [B, P, C]
        ids = inputs.mask_2d.ids_keep
        return take(tokens, ids), take(self.depth_position.expand_as(tokens), ids)

    def _align(self, center_cells: Tensor, ids_3d: Tensor, ids_2d: Tensor) -> ops.Alignment:
        """Which of these 3D and 2D tokens see the same part of the object (section 3.3)."""
        scheme = (self.config.attention_2d_to_3d, self.config.attention_3d_to_2d)
        return ops.align(self._cells(center_cells, ids_3d, ids_2d), ids_3d.shape[1], scheme)

    def _cells(self, center_cells: Tensor, ids_3d: Tensor, ids_2d: Tensor) -> Tensor:
        """The alignment cells of these 3D and 2D tokens, int32 [B, 3D + 2D]; -1 = none."""
        cells = torch.cat([take(center_cells, ids_3d), ids_2d.to(torch.int32)], dim=1)
        return coarsen_cells(self.config, cells)

    @torch.no_grad()
    def valid_pairs(self, inputs: Inputs) -> Tensor:
        """Pairs of a visible 3D and a visible 2D token in one cell: int64 [B], 0 without the 2D branch (D 12)."""
        if inputs.mask_2d is None or inputs.center_cells is None:
            return torch.zeros(len(inputs.points), dtype=torch.int64, device=inputs.points.device)
        ids_3d = inputs.mask_3d.ids_keep
        cells = self._cells(inputs.center_cells, ids_3d, inputs.mask_2d.ids_keep)
        cells_3d, cells_2d = cells[:, : ids_3d.shape[1], None], cells[:, None, ids_3d.shape[1] :]
        return (cells_3d == cells_2d).sum((1, 2))  # a 2D token always has a cell

    def decode(self, latent: Latent, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Decoded hidden tokens [B, G", C] and [B, P", C] (equations 3 and 4).

        Tokens stay in the masks' order, visible before hidden: attention does not care, positions say where each is.
        The specific decoders' queries do not see one another, so they run on the hidden tokens only.
        """
        mask_3d, mask_2d = inputs.mask_3d, inputs.mask_2d
        x_3d, position_3d = self._decoder_3d(latent.tokens_3d, inputs)  # [B, G, C]
        if mask_2d is None:
            x, position = x_3d, position_3d
        else:
            x_2d, position_2d = self._decoder_2d(latent.tokens_2d, mask_2d)  # [B, P, C]
            x, position = torch.cat([x_3d, x_2d], dim=1), torch.cat([position_3d, position_2d], dim=1)
        if self.config.shared_decoder:
            x = self.shared_decoder(x, position, self._decoder_alignment(inputs))
        x = x + position
        num_visible, G = mask_3d.ids_keep.shape[1], x_3d.shape[1]
        decoded_3d = self.point_decoder(x[:, num_visible:G], latent.tokens_3d)
        if mask_2d is None:
            return decoded_3d, None
        decoded_2d = self.depth_decoder(x[:, G + mask_2d.ids_keep.shape[1] :], latent.tokens_2d)
        return decoded_3d, decoded_2d

    def _decoder_3d(self, latent: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Visible latents and mask tokens of the 3D branch, and their positions: [B, G, C] each."""
        mask, centers = inputs.mask_3d, inputs.geometry.centers
        hidden = self.mask_token_3d.to(latent.dtype).expand(*mask.ids_hidden.shape, -1)  # [B, G", C]
        x = torch.cat([latent, hidden], dim=1)
        if self.config.modality_token_in_decoder:
            x = x + self.modality_3d
        return x, self.decoder_point_position(take(centers, torch.cat(mask, dim=1)))

    def _decoder_2d(self, latent: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Visible latents and mask tokens of the 2D branch, and their positions: [B, P, C] each."""
        hidden = self.mask_token_2d.to(latent.dtype).expand(*mask.ids_hidden.shape, -1)  # [B, P", C]
        x = torch.cat([latent, hidden], dim=1)
        if self.config.modality_token_in_decoder:
            x = x + self.modality_2d
        return x, take(self.decoder_depth_position.expand_as(x), torch.cat(mask, dim=1)).to(latent.dtype)

    def _decoder_alignment(self, inputs: Inputs) -> ops.Alignment | None:
        """None: the shared decoder's attention is global, unless the config says otherwise (D 14)."""
        if self.config.decoder_attention == "global" or inputs.mask_2d is None:
            return None
        assert inputs.center_cells is not None
        return self._align(inputs.center_cells, torch.cat(inputs.mask_3d, dim=1), torch.cat(inputs.mask_2d, dim=1))

    def reconstruction(
        self, pred_groups: Tensor, pred_patches: Tensor | None, latent: Latent, inputs: Inputs
    ) -> Reconstruction:
        """The losses of a prediction (equations 5 to 7); `pred_groups` in units of 1 / group_scale."""
        config = self.config
        target_groups = take(inputs.groups, inputs.mask_3d.ids_hidden) * config.group_scale
        loss_3d = losses.loss_3d(pred_groups, target_groups)
        loss_2d = loss_cross = torch.zeros_like(loss_3d)
        pred_groups = pred_groups / config.group_scale
        if pred_patches is not None and inputs.mask_2d is not None:
            assert inputs.images is not None
            target_patches = take(patches_of(inputs.images), inputs.mask_2d.ids_hidden)
            loss_2d = losses.loss_2d(pred_patches, target_patches, config.normalize_patches)
            if config.cross_views > 0:
                loss_cross = self._cross_loss(pred_groups, inputs)
        loss = config.loss_weight_3d * loss_3d + config.loss_weight_2d * loss_2d + config.loss_weight_cross * loss_cross
        return Reconstruction(loss, loss_3d, loss_2d, loss_cross, pred_groups, pred_patches, latent, inputs)

    def _cross_loss(self, pred_groups: Tensor, inputs: Inputs) -> Tensor:
        """L_3D-2D: the predicted cloud against the input, seen by the same cameras (equation 6, D 16-19)."""
        hidden = take(inputs.groups, inputs.mask_3d.ids_hidden)
        rendered = self._render(self.join_groups(pred_groups, inputs), inputs.cameras)
        with torch.no_grad():
            points = self.join_groups(hidden, inputs) if self.config.cross_target == "groups" else inputs.points
            target = self._render(points, inputs.cameras)
        return losses.loss_cross(rendered, target)

    def join_groups(self, hidden_groups: Tensor, inputs: Inputs) -> Tensor:
        """Hidden groups [B, G", k, 3] moved to their centres and joined with the visible groups: [B, G k, 3]."""
        ids_keep, ids_hidden = inputs.mask_3d
        centers = inputs.geometry.centers
        points = (hidden_groups + take(centers, ids_hidden)[:, :, None]).flatten(1, 2)
        if self.config.cross_points == "hidden":
            return points
        visible = take(inputs.groups, ids_keep) + take(centers, ids_keep)[:, :, None]  # [B, G', k, 3]
        return torch.cat([points, visible.flatten(1, 2)], dim=1)

    def _render(self, points: Tensor, cameras: Tensor) -> Tensor:
        images = project(self.config, points, cameras, self.config.cross_mode).images  # [B, V, S, S]
        if not self.config.color_render:
            return images
        colors: Tensor = colorize(images.flatten(0, 1)[:, None]).unflatten(0, images.shape[:2])  # [B, V, 3, S, S]
        return colors.flatten(1, 2)

    # ---- downstream: the 3D branch alone (section 4.1) ----

    def encode(self, points: Tensor, normalize: bool = True) -> Features:
        """Features of clouds [B, N, 3], any N >= 32, on the model's device.

        `normalize` centres and scales each cloud into the unit sphere, which is what the encoder was trained on. Clouds
        smaller than the number of centres are repeated cyclically up to it. Raises ValueError for other shapes, for
        N < 32 and for coordinates that are not finite.
        """
        encoder = self.point_encoder()
        features: Features = encoder(encoder.ready(points, normalize))
        return features

    def point_encoder(self) -> PointEncoder:
        """The 3D branch alone, with the weights of this model, not a copy: what fine-tuning starts from."""
        return PointEncoder(self.config, self.point_embed, self.point_position, self.modality_3d, self.encoder)

    # ---- files ----

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model": to_dict(self.config)}, indent=2) + "\n")
        safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> JointMAE:
        """The model of a run's folder, or of one .safetensors file in it (a checkpoint's too), in evaluation mode.

        Raises CheckpointError if a file is missing, damaged or made for another model.
        """

        def build(config: ModelConfig, values: dict[str, Any]) -> JointMAE:
            if "checkpoint_sha256" in values:
                raise ValueError("it was trained further: jointmae.model.Classifier or Segmenter loads it")
            return cls(config)

        return load_model(path, build)
