"""AdamW over a model's parameters, and its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jointmae.config import RunConfig
from jointmae.parallel import like, whole

_TOKENS = ("modality_2d", "modality_3d", "mask_token_2d", "mask_token_3d", "depth_position", "decoder_depth_position")


def adamw(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """The optimizer of a run."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more dimensions decay; biases, norms, tokens and learned positions do not."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_token = name.rpartition(".")[2] in _TOKENS
        (decaying if parameter.dim() >= 2 and not is_token else others).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by parameter and slot, as in "encoder.norm.bias/exp_avg"."""
    return {
        f"{name}/{slot}": whole(value).contiguous()
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`. Raises KeyError for a parameter that the model does not have."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][slot] = like(value, parameter)
