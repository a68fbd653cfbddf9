"""One step of training: from clouds to new weights. On a GPU `Step.run` does not wait for the device, but with shards.

B clouds of a batch, N points. A process computes its share of the batch, in one part or in several.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jointmae import parallel
from jointmae.config import TrainConfig
from jointmae.data import PointClouds, normalize_unit_sphere, scale_and_shift
from jointmae.device import is_out_of_memory, return_freed_memory
from jointmae.distributed import World
from jointmae.model import JointMAE
from jointmae.model.masking import draw
from jointmae.optimizer import adamw
from jointmae.random import Purpose, keys

LOSSES = ("loss", "loss_3d", "loss_2d", "loss_cross")


class Losses(NamedTuple):
    """The losses of B clouds, each a mean over them, and their features. One left out is 0 and has no gradient."""

    loss: Tensor  # [], the weighted sum of the next three: what is minimised
    loss_3d: Tensor  # []
    loss_2d: Tensor  # []
    loss_cross: Tensor  # []
    features: Tensor  # [B, C] float64, without gradient: the mean of each cloud's visible 3D tokens
    pairs: Tensor  # int64 [B], of visible 3D and 2D tokens in one cell


class Parts(NamedTuple):
    """What the parts of a batch gave."""

    losses: Tensor  # float64 [4], LOSSES of the batch over all processes
    features: list[Tensor]  # float64 [part, C] each, of this process's parts
    pairs: list[Tensor]  # int64 [part] each, likewise
    differentiable: list[str]  # those of LOSSES that have a gradient


class Pretraining(nn.Module):
    """A model and what it is trained for: augmentation, projection, forward and losses, one graph when compiled."""

    def __init__(self, model: JointMAE, config: TrainConfig, device_type: str) -> None:
        super().__init__()
        self.model, self.config = model, config
        bf16 = config.precision == "bf16" or (config.precision == "auto" and device_type == "cuda")
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.device_type, self.bf16 = device_type, bf16

    def forward(self, points: Tensor, up: Tensor, ids: Tensor, epoch: Tensor) -> Losses:
        """Points [B, N, 3] and up axes [B, 3] of clouds `ids` int64 [B], in `epoch`, int64 []."""
        points = augment(self.config, points, ids, epoch).to(self.dtype)
        draws = draw(self.config.model, self.config.seed, epoch, ids)
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16):
            output = self.model(points, up.to(self.dtype), draws)
        features = output.latent.tokens_3d.detach().double().mean(1)
        pairs = self.model.valid_pairs(output.inputs)
        return Losses(output.loss, output.loss_3d, output.loss_2d, output.loss_cross, features, pairs)


def augment(config: TrainConfig, points: Tensor, ids: Tensor, epoch: int | Tensor) -> Tensor:
    """Points [B, N, 3] of clouds `ids` [B] as the model gets them: augmented, and in the unit sphere."""
    if config.augment == "scale+shift":
        scale_keys, shift_keys = (keys(config.seed, epoch, ids, purpose) for purpose in (Purpose.SCALE, Purpose.SHIFT))
        return scale_and_shift(points, scale_keys, shift_keys, normalize=config.model.normalize_input)
    return normalize_unit_sphere(points) if config.model.normalize_input else points


class Step:
    """A model, its optimizer and its data: `run` makes one step. The same on one device and on several processes."""

    def __init__(self, model: JointMAE, config: TrainConfig, clouds: PointClouds, world: World | None = None) -> None:
        """The weights of `model` are trained in place, on the device of `clouds`; with FSDP they become shards."""
        self.model, self.config, self.clouds, self.world = model, config, clouds, world or World()
        self.device = clouds.device
        self.num_parts = config.accumulate
        self._alone: Any = Pretraining(model, config, self.device.type)  # without a word to other processes
        parallel.spread(self._alone, config.parallel, self.world, self.device)
        self.optimizer = adamw(model, config)
        self._keeps_gradients = False
        if wants_compile(config, self.device):
            self._compile()
        self._together = parallel.replicated(self._alone, config.parallel, self.world)
        # 1 once a loss or gradient was not finite, and no later step changes a weight: a GPU is asked only now and then
        self._broken = torch.zeros((), device=self.device)

    def _compile(self) -> None:
        one_graph = self.config.parallel == "ddp" or self.world.size == 1
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        fullgraph = one_graph and not (has_batch_norm and self.world.size > 1)  # these talk to other processes
        graphs = one_graph and self.device.type == "cuda" and self.config.cuda_graphs  # shards have no fixed addresses
        mode = "reduce-overhead" if graphs else None
        torch._dynamo.config.optimize_ddp = False  # which would cut the graph into pieces
        torch._dynamo.config.recompile_limit = 64  # each size of a part is a graph of its own
        self._alone = torch.compile(self._alone, fullgraph=fullgraph, dynamic=False, mode=mode)
        self._keeps_gradients = graphs  # what a graph returns lasts until it is replayed

    def run(self, ids: Tensor, epoch: int, lr: float) -> Tensor:
        """A step on clouds `ids` int64 [B]: float64 [5], the LOSSES and the norm of the gradient, on the device.

        Where one of them is not finite, neither this nor a later step changes the weights. On a CPU a prediction that
        is not finite raises ValueError.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._gradients(ids, epoch).losses
        return torch.cat([losses, self._clip_and_step(losses[0]).double()[None]])

    def diagnose(self, ids: Tensor, epoch: int) -> dict[str, float]:
        """The norm of each weighted loss's gradient, how much pooled features differ between clouds, and valid pairs.

        Each loss has a pass of its own, as gradients meet in one place only. Nothing of the model changes.
        """
        found = {}
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        for name in LOSSES[1:]:
            weights = {other: 0.0 for other in LOSSES[1:]}
            weights[name] = getattr(self.config.model, name.replace("loss_", "loss_weight_"))
            parts = self._gradients(ids, epoch, weights)
            if name in parts.differentiable:
                norm = torch.nn.utils.get_total_norm(list(self._grads()))
                found[name.replace("loss", "grad_norm")] = float(parallel.whole(norm))
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self.discard()
        if self.config.model.modality == "joint":
            pairs = torch.cat(parts.pairs).double()
            sums = torch.stack([torch.ones_like(pairs), pairs, (pairs == 0).double()]).sum(1)
            count, total, without = self.world.sum(sums).tolist()
            found |= {"valid_pairs": total / count, "without_pair": without / count}
        return {"feature_std": self._spread_of(torch.cat(parts.features)), **found}

    def _spread_of(self, features: Tensor) -> float:
        """The standard deviation over the clouds of all processes of features [B, C], mean over C; 0 for one cloud."""
        count = torch.full_like(features[0], len(features))
        count, total, squares = self.world.sum(torch.stack([count, features.sum(0), features.square().sum(0)]))
        variance = (squares / count - (total / count).square()).clamp(min=0)
        return float(variance.sqrt().mean())

    def _gradients(self, ids: Tensor, epoch: int, weights: dict[str, float] | None = None) -> Parts:
        """The gradients of clouds `ids`, of which this process computes its share, part by part.

        Of the weighted sum of the losses, or with other `weights` than the config's.
        """
        self.discard()
        totals = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)
        features: list[Tensor] = []
        pairs: list[Tensor] = []
        differentiable: list[str] = []
        parts = self.world.share(ids).tensor_split(self.num_parts)
        for part in parts:
            weight = len(part) / len(ids)
            with parallel.added_up(self._together, last=len(features) == len(parts) - 1):
                output = self._forward(self._together, part, epoch)
                loss = output.loss if weights is None else sum(w * getattr(output, name) for name, w in weights.items())
                # what comes of all processes is the mean of their gradients, and wanted is the sum of all parts
                (loss * (weight * self.world.size)).backward()
            totals += weight * torch.stack([loss.detach() for loss in output[: len(LOSSES)]])
            features.append(output.features.clone())  # what a graph returns lasts until it is replayed
            pairs.append(output.pairs.clone())
            differentiable = [name for name in LOSSES if getattr(output, name).requires_grad]
        return Parts(self.world.sum(totals), features, pairs, differentiable)

    def _forward(self, objective: Any, ids: Tensor, epoch: int) -> Losses:
        if self._keeps_gradients:
            torch.compiler.cudagraph_mark_step_begin()
        losses: Losses = objective(*self._batch(ids, epoch))
        return losses

    def _batch(self, ids: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `Pretraining.forward` takes. Filled on the device: to take a number there would be to wait for it."""
        points = self.clouds.batch(ids, self.config.model.num_points, self.config.seed, epoch)
        return points, self.clouds.up[ids], ids, torch.full((), epoch, dtype=torch.int64, device=self.device)

    def _grads(self) -> Iterator[Tensor]:
        return (p.grad for p in self.model.parameters() if p.grad is not None)

    def _clip_and_step(self, loss: Tensor) -> Tensor:
        """Steps, unless the loss or the gradient is not finite; returns the gradient's norm before it was clipped.

        Not compiled: AdamW is one fused kernel a parameter group, and PyTorch's optimizers break a graph themselves.
        """
        norm = torch.nn.utils.get_total_norm(list(self._grads()))
        if self.config.clip_grad > 0:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_grad, norm)
        norm = parallel.whole(norm)
        finite = loss.isfinite() & norm.isfinite()
        self._broken.copy_(torch.where(finite, self._broken, 1.0))
        if self.config.parallel == "fsdp" and self.world.size > 1:  # shards do not go together with `found_inf`
            if self._broken.item():
                return norm
        else:
            self.optimizer.found_inf = self._broken  # type: ignore[attr-defined]  # read by fused optimizers
        self.optimizer.step()
        return norm

    # ---- memory ----

    def discard(self) -> None:
        """Lets go of gradients."""
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        if self._keeps_gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def parts_that_fit(self, ids: Tensor, epoch: int, world: World, at_least: int = 1) -> int:
        """The fewest of `at_least`, twice as many, ... parts for which each process of `world` has memory; 0: none.

        Nothing of the model changes, and no process waits for another one while it tries.
        """
        num_parts, most = at_least, len(ids) // self.world.size
        while num_parts <= most:
            part = self.world.share(ids).tensor_split(num_parts)[0]
            if not world.most(torch.tensor(float(not self._fits(part, epoch)))):
                return num_parts
            num_parts = most if num_parts < most < 2 * num_parts else 2 * num_parts
        return 0

    def _fits(self, ids: Tensor, epoch: int) -> bool:
        """Whether there is memory for the gradients of clouds `ids` beside the optimizer's state."""
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        try:
            self.discard()
            for norm in norms:  # which would count these clouds, and wait for other processes
                norm.eval()
            moments = (
                [] if self.optimizer.state else [torch.empty_like(p) for p in self.model.parameters() for _ in "mv"]
            )
            self._forward(self._alone, ids, epoch).loss.backward()
            del moments
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            for norm in norms:
                norm.train()
            self.discard()
            return_freed_memory(self.device)


def wants_compile(config: TrainConfig, device: torch.device) -> bool:
    """Whether the step is compiled: by default on a GPU."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
