"""Pre-norm transformer blocks. B clouds, L tokens, C channels, h heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jointmae import ops
from jointmae.ops import Alignment


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of q [B, h, L, d] to k and v [B, h, M, d].

    In float32 on a CPU: there PyTorch's own takes up to nine times as long in bfloat16, forward and backward.
    """
    if q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); local-aligned (section 3.3) when given an alignment."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, alignment: Alignment | None = None) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        B, L, C = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, h, L, C/h] each
        if alignment is None:
            y = attend(q, k, v)
        else:
            y = ops.local_aligned_attention(q, k, v, alignment)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(B, L, C))
        return out


class CrossAttention(nn.Module):
    """Attention from queries to the tokens of another sequence."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries [B, L, C], memory [B, M, C] -> [B, L, C]."""
        B, L, C = x.shape
        h, M = self.num_heads, memory.shape[1]
        q = self.q(x).view(B, L, h, C // h).transpose(1, 2)  # [B, h, L, C/h]
        k, v = self.kv(memory).view(B, M, 2, h, C // h).permute(2, 0, 3, 1, 4).unbind(0)  # [B, h, M, C/h]
        y = attend(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(B, L, C))
        return out


def mlp(dim: int, ratio: float) -> nn.Sequential:
    """Two linear layers with GELU between."""
    hidden = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def drop_path(x: Tensor, rate: float, uniforms: Tensor | None) -> Tensor:
    """Zeroes whole samples of a residual branch x [B, L, C] where `uniforms` [B] < rate, and scales up the others."""
    if uniforms is None or rate == 0:
        return x
    keep = (uniforms >= rate).to(x.dtype) / (1 - rate)
    return x * keep[:, None, None]


class Block(nn.Module):
    """Self-attention and MLP, each behind a norm and beside a skip."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, alignment: Alignment | None = None, uniforms: Tensor | None = None) -> Tensor:
        """[B, L, C] -> [B, L, C]; `uniforms` [B, 2] in [0, 1) drive drop path, None turns it off."""
        first, second = (None, None) if uniforms is None else uniforms.unbind(1)
        x = x + drop_path(self.attention(self.norm1(x), alignment), self.drop_path, first)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, second)


class CrossBlock(nn.Module):
    """Cross-attention and MLP, each behind a norm and beside a skip, and a final norm (equation 4, D 24)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_memory = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim, mlp_ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries [B, L, C], memory [B, M, C] -> [B, L, C]."""
        x = x + self.attention(self.norm1(x), self.norm_memory(memory))
        normed: Tensor = self.norm(x + self.mlp(self.norm2(x)))
        return normed


class Transformer(nn.Module):
    """Blocks that get their positions anew each time, and a final norm."""

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, mlp_ratio: float, drop_path: float, position_every_block: bool
    ) -> None:
        super().__init__()
        self.position_every_block = position_every_block
        rates = [drop_path * i / max(num_layers - 1, 1) for i in range(num_layers)]
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, alignment: Alignment | None = None, uniforms: Tensor | None = None
    ) -> Tensor:
        """Tokens and positions [B, L, C] -> [B, L, C]; `uniforms` [B, num_layers, 2] drive drop path."""
        normed: Tensor = self.norm(self.outputs(x, position, alignment, uniforms)[-1])
        return normed

    def outputs(
        self, x: Tensor, position: Tensor, alignment: Alignment | None = None, uniforms: Tensor | None = None
    ) -> list[Tensor]:
        """What comes of each block, [B, L, C] each, before the final norm."""
        outputs = []
        for i, block in enumerate(self.blocks):
            if i == 0 or self.position_every_block:
                x = x + position
            x = block(x, alignment, None if uniforms is None else uniforms[:, i])
            outputs.append(x)
        return outputs


class PointPosition(nn.Sequential):
    """Positions of 3D tokens: MLP 3 -> 128 -> C of the centre (D 22)."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))


def sincos_position(grid_size: int, dim: int) -> Tensor:
    """Fixed positions [grid_size^2, dim] of a square grid, row by row: half the channels for y, half for x (MAE)."""
    assert dim % 4 == 0, "sine and cosine of two coordinates"
    frequencies = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies  # [grid_size, dim/4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid_size, dim/2]
    y = axis[:, None].expand(-1, grid_size, -1)
    x = axis[None].expand(grid_size, -1, -1)
    return torch.cat([y, x], dim=-1).reshape(grid_size**2, dim).float()


def init_transformer(module: nn.Module, xavier: bool = False) -> None:
    """Weights as the family draws them: truncated normal of 0.02, in decoders Xavier; biases 0."""
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        if xavier:
            nn.init.xavier_uniform_(layer.weight)
        else:
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
