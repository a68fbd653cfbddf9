"""One step of training: from clouds to new weights. On a GPU `Step.run` does not wait for the device, but with shards.

B clouds of a batch, L losses. A process computes its share of the batch, in one part or in several.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from jointmae import parallel
from jointmae.config import RunConfig
from jointmae.data import PointClouds
from jointmae.device import is_out_of_memory, return_freed_memory
from jointmae.distributed import World
from jointmae.objective import Losses, Objective
from jointmae.optimizer import adamw


class Parts(NamedTuple):
    """What the parts of a batch gave."""

    losses: Tensor  # float64 [L], those of the batch over all processes
    details: dict[str, Tensor]  # `Losses.details` of this process's clouds
    differentiable: list[str]  # the losses that have a gradient


class Step:
    """An objective, its optimizer and its data: `run` makes one step, on one device or on several processes."""

    def __init__(self, objective: Objective, clouds: PointClouds, world: World | None = None) -> None:
        """The weights of its model are trained in place, on the device of `clouds`; with FSDP they become shards."""
        self.objective, self.clouds, self.world = objective, clouds, world or World()
        self.model, self.config = objective.model, objective.config
        config, self.device = objective.config, clouds.device
        self.num_parts = config.accumulate
        parallel.spread(objective, config.parallel, self.world, self.device)
        self.optimizer = adamw(self.model, config)
        self._alone: Any = objective  # without a word to other processes; compiled, if it is to be
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
        """A step on clouds `ids` int64 [B]: float64 [L + 1], losses and the norm of the gradient, on the device.

        Where one of them is not finite, neither this nor a later step changes the weights. On a CPU a prediction that
        is not finite raises ValueError.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._gradients(ids, epoch).losses
        return torch.cat([losses, self._clip_and_step(losses[0]).double()[None]])

    def diagnose(self, ids: Tensor, epoch: int) -> dict[str, float]:
        """The norm of each weighted loss's gradient, and what the objective finds in its details.

        Each loss has a pass of its own, as gradients meet in one place only. Nothing of the model changes.
        """
        found: dict[str, float] = {}
        details: dict[str, Tensor] = {}
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        for name, weight in self.objective.weights.items() or [(self.objective.names[0], 1.0)]:
            parts = self._gradients(ids, epoch, {name: weight})
            details = parts.details
            if name in parts.differentiable and len(self.objective.weights):
                norm = torch.nn.utils.get_total_norm(list(self._grads()))
                found[name.replace("loss", "grad_norm")] = float(parallel.whole(norm))
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self.discard()
        return {**self.objective.diagnostics(details, self.world), **found}

    def _gradients(self, ids: Tensor, epoch: int, weights: dict[str, float] | None = None) -> Parts:
        """The gradients of clouds `ids`, of which this process computes its share, part by part.

        Of the first loss, or of the sum with these `weights`, in which those that are not named count 0.
        """
        self.discard()
        names = self.objective.names
        totals = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        details: list[dict[str, Tensor]] = []
        differentiable: list[str] = []
        parts = self.world.share(ids).tensor_split(self.num_parts)
        for part in parts:
            weight = len(part) / len(ids)
            with parallel.added_up(self._together, last=len(details) == len(parts) - 1):
                output = self._forward(self._together, part, epoch)
                loss = output.values[0]
                if weights is not None:  # all take part: a model in several processes waits for all its gradients
                    factors = [weights.get(name, 0.0) for name in names]
                    loss = torch.stack([w * value for w, value in zip(factors, output.values, strict=True)]).sum()
                # what comes of all processes is the mean of their gradients, and wanted is the sum of all parts
                (loss * (weight * self.world.size)).backward()
            totals += weight * torch.stack([value.detach() for value in output.values])
            # what a graph returns lasts until it is replayed
            details.append({name: value.clone() for name, value in output.details.items()})
            differentiable = [name for name, value in zip(names, output.values, strict=True) if value.requires_grad]
        joined = {name: torch.cat([of_part[name] for of_part in details]) for name in details[0]}
        return Parts(self.world.sum(totals), joined, differentiable)

    def _forward(self, objective: Any, ids: Tensor, epoch: int) -> Losses:
        if self._keeps_gradients:
            torch.compiler.cudagraph_mark_step_begin()
        losses: Losses = objective(*self.objective.batch(self.clouds, ids, epoch))
        return losses

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
            self._forward(self._alone, ids, epoch).values[0].backward()
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


def wants_compile(config: RunConfig, device: torch.device) -> bool:
    """Whether the step is compiled: by default on a GPU."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
