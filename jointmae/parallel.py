"""One model on several processes: copies whose gradients are added up (DistributedDataParallel), or shards (FSDP2)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jointmae.distributed import World
from jointmae.model.transformer import Block, CrossBlock


def spread(objective: nn.Module, kind: str, world: World, device: torch.device) -> None:
    """Readies a model for several processes: norms that see the whole batch and, for "fsdp", its weights in shards."""
    if world.size == 1:
        return
    synchronise_norms(objective, device)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh  # here, as these take most of a second to import
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world.size,))
        for module in objective.modules():
            if isinstance(module, (Block, CrossBlock)):
                fully_shard(module, mesh=mesh)
        fully_shard(objective, mesh=mesh)


def replicated(objective: nn.Module, kind: str, world: World) -> nn.Module:
    """The module to call so that gradients are the mean over all processes after `backward`."""
    if world.size == 1 or kind == "fsdp":
        return objective
    return DistributedDataParallel(objective)


def added_up(objective: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Around a forward and a backward pass: gradients meet those of other processes after the last part alone."""
    if hasattr(objective, "set_requires_gradient_sync"):  # of FSDP2
        objective.set_requires_gradient_sync(last)
    elif isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    return contextlib.nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of the weights."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a shard; then every process has to ask for it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, model_tensor: Any) -> Tensor:
    """`value`, which is whole, as this process holds `model_tensor`: on its device, and as its shard."""
    value = value.to(model_tensor.device)
    if not hasattr(model_tensor, "full_tensor") or value.shape != model_tensor.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, model_tensor.device_mesh, model_tensor.placements)


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Lets batch norms normalise by the whole batch, not by a process's share of it."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm1d:
                setattr(parent, name, _SyncedBatchNorm1d.of(norm))


class _SyncedBatchNorm1d(nn.BatchNorm1d):
    """What `nn.SyncBatchNorm` computes, for devices that it is not for."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @staticmethod
    def of(norm: nn.BatchNorm1d) -> _SyncedBatchNorm1d:
        """With the parameters and buffers of `norm`."""
        assert norm.momentum is not None and norm.track_running_stats
        with torch.device("meta"):
            synced = _SyncedBatchNorm1d(norm.num_features, norm.eps, norm.momentum)
        for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(synced, name, value)
        return synced.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C] -> [n, C]; n may differ between processes."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        count = _sum(x.new_tensor(len(x)))
        mean = _sum(x.sum(0)) / count  # [C]
        centered = x - mean
        variance = _sum(centered.square().sum(0)) / count  # [C]
        with torch.no_grad():
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        return (centered * (variance + self.eps).rsqrt() * self.weight + self.bias).to(dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of what one adds is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total
