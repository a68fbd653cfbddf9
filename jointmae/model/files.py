"""A trained model's folder: `config.json` says how to build it, `model.safetensors` holds its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from jointmae.config import ModelConfig, model_config_from_dict
from jointmae.errors import CheckpointError, JointMAEError
from jointmae.limits import require_valid_model

Model = TypeVar("Model", bound=nn.Module)


def load_model(path: str | Path, build: Callable[[ModelConfig, dict[str, Any]], Model]) -> Model:
    """The model of a run's folder, or of one .safetensors file in it (a checkpoint's too), in evaluation mode.

    `build` makes it, with any weights, of its ModelConfig and all of config.json. Raises CheckpointError if a file is
    missing, damaged or made for another model.
    """
    weights = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / "model.safetensors"
    folder = weights.parent
    if folder.parent.name == "checkpoints":  # runs/NAME/checkpoints/step-N
        folder = folder.parent.parent
    try:
        values = json.loads((folder / "config.json").read_text())
        config = model_config_from_dict(values["model"])
        require_valid_model(config)
        model = build(config, values)
        model.load_state_dict(safetensors.torch.load_file(weights))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, JointMAEError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a trained model ({reason}). Wanted: a finished run's folder with config.json and "
            "model.safetensors."
        ) from error
    return model.eval()
