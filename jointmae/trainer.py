"""The pre-training loop: `train(config)`. B clouds of a batch, N points.

Everything random is a function of (seed, epoch, sample id), every number in metrics.jsonl of config, data and seed: a
run that was killed and resumed ends in the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from jointmae import checkpoint, random
from jointmae.checkpoint import Checkpoint
from jointmae.config import PATCH_SIZE, ModelConfig, TrainConfig
from jointmae.data import PointClouds, concat, load, scale_and_shift, splits_of
from jointmae.device import choose_device, is_out_of_memory, memory_bytes
from jointmae.errors import CheckpointError, NonFiniteError, OutOfMemoryError, UsageError
from jointmae.files import write_atomically
from jointmae.model import JointMAE, Reconstruction
from jointmae.model.masking import Draws, draw
from jointmae.progress import Progress, Snapshot
from jointmae.random import Purpose
from jointmae.run_folder import RunFolder, default_folder
from jointmae.schedule import Schedule

LOG_STEPS = 10  # a line of metrics.jsonl is a mean over so many steps
DIAGNOSTIC_STEPS = 100  # gradient norm of each loss, and the spread of features
CHECKPOINT_SECONDS = 30.0

LOSSES = ("loss", "loss_3d", "loss_2d", "loss_cross")


def train(config: TrainConfig) -> int:
    """Trains, or goes on, or finds that all is done; returns the exit code."""
    require_valid(config)
    device = choose_device(config.device)
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    clouds = load_training_data(config, device)
    path = Path(config.out) if config.out else default_folder(config)
    schedule = Schedule(config, len(clouds) // min(config.batch_size, len(clouds)))
    if config.dry_run:
        print(describe(config, clouds, schedule, path))
        return 0
    run = RunFolder(path, config, clouds.sha256)
    if run.status().get("state") == "finished" and run.status()["step"] >= schedule.num_steps:
        print(f"{path} is finished:\n{run.status().get('result', '')}")
        return 0
    print(describe(config, clouds, schedule, path), flush=True)
    run.begin()
    with contextlib.closing(run):
        return Trainer(config, clouds, schedule, run, device).run()


def require_valid(config: TrainConfig) -> None:
    """Raises UsageError for values that no run can have."""
    model = config.model
    rules = [
        ("--epochs", config.epochs, "at least 1", config.epochs >= 1),
        ("--batch-size", config.batch_size, "at least 1", config.batch_size >= 1),
        ("--max-steps", config.max_steps, "at least 0", config.max_steps >= 0),
        ("--threads", config.threads, "at least 0", config.threads >= 0),
        ("--lr", config.lr, "positive", config.lr > 0 and math.isfinite(config.lr)),
        ("--warmup-epochs", config.warmup_epochs, "at least 0", config.warmup_epochs >= 0),
        ("--mask-ratio", model.mask_ratio, "above 0 and below 1", 0 < model.mask_ratio < 1),
        ("--image-size", model.image_size, "a multiple of 16", model.image_size % PATCH_SIZE == 0),
        ("--num-heads", model.num_heads, f"a divisor of {model.embed_dim}", model.embed_dim % model.num_heads == 0),
        ("--num-centers", model.num_centers, "fine >= coarse >= 4", model.num_centers[0] >= model.num_centers[1] >= 4),
        ("--num-points", model.num_points, "at least the fine centres", model.num_points >= model.num_centers[0]),
    ]
    for option, value, wanted, holds in rules:
        if not holds:
            raise UsageError(f"{option} must be {wanted}, got {value}")


def load_training_data(config: TrainConfig, device: torch.device) -> PointClouds:
    """The clouds of all --data, joined, on the device. Raises UsageError for a set that has none of --splits."""
    sets = []
    for name in config.data:
        splits = [split for split in config.splits if split in splits_of(name)]
        if not splits:
            there, wanted = ", ".join(splits_of(name)), " ".join(config.splits)
            raise UsageError(f"--data {name} has none of --splits {wanted}; it has {there}")
        sets.append(load(name, splits))
    return (sets[0] if len(sets) == 1 else concat(sets)).to(device)


def describe(config: TrainConfig, clouds: PointClouds, schedule: Schedule, path: Path) -> str:
    """What is about to be trained, and where."""
    model = JointMAE(config.model)
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"jointmae: {config.preset} ({parameters / 1e6:.2f} M parameters), recipe {config.recipe}\n"
        f"data      {clouds.describe()}\n"
        f"schedule  {schedule.num_steps} steps of {min(config.batch_size, len(clouds))} clouds, {config.epochs} epochs\n"
        f"run       {path}"
    )


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more dimensions decay; biases, norms and tokens do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_token = [name.startswith(("mask_token", "modality")) or name.endswith("depth_position") for name, _ in named]
    decays = [p.dim() >= 2 and not token for (_, p), token in zip(named, is_token, strict=True)]
    groups = [(weight_decay, True), (0.0, False)]
    return [
        {"params": [p for (_, p), d in zip(named, decays, strict=True) if d == flag], "weight_decay": decay}
        for decay, flag in groups
    ]


class Trainer:
    """One run on one device."""

    def __init__(
        self, config: TrainConfig, clouds: PointClouds, schedule: Schedule, run: RunFolder, device: torch.device
    ) -> None:
        self.config, self.clouds, self.schedule, self.folder, self.device = config, clouds, schedule, run, device
        self.batch_size = min(config.batch_size, len(clouds))
        self.model = JointMAE(config.model, seed=config.seed).to(device).train()
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.forward = self._compiled() if self._wants_compile() else self.model
        bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.step = 0
        self.window: list[list[float]] = []  # the losses of steps that have no line in metrics.jsonl yet
        self.epoch_losses: list[float] = []
        self.best: dict[str, float] = {}  # the epoch with the lowest mean loss
        self._last_checkpoint = time.monotonic()
        self._window_began = time.monotonic()

    def _wants_compile(self) -> bool:
        return self.config.compile == "on" or (self.config.compile == "auto" and self.device.type == "cuda")

    def _compiled(self) -> Any:
        return torch.compile(self.model, fullgraph=True, dynamic=False)

    # ---- the run ----

    def run(self) -> int:
        """From the newest checkpoint to the last step, then evaluation and report; returns the exit code."""
        self._resume()
        with self._failures_recorded(), Progress() as progress, _stop_signals() as stop:
            self._warn_if_trivial()
            while self.step < self.schedule.num_steps:
                self._train_step(progress)
                if stop:
                    return self._stopped(stop[0])
        self._finish()
        return 0

    def _resume(self) -> None:
        if self.config.resume not in ("auto", "never"):
            self._restore(checkpoint.load(Path(self.config.resume)))
        else:
            found, complaints = checkpoint.load_newest(self.folder.checkpoints)
            for complaint in complaints:
                print(f"warning: {complaint}; trying an older one", flush=True)
            if found is not None and self.config.resume == "never":
                raise UsageError(f"{self.folder.path} holds a run and --resume is never: choose another --out")
            if found is None and complaints:
                raise CheckpointError(f"{self.folder.checkpoints}: no valid checkpoint left; remove the run to start again")
            if found is not None:
                self._restore(found)
        self.folder.cut_after(self.step)
        self.folder.write_status("running", self.step)

    def _restore(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.model)
        self._load_optimizer(found.optimizer)
        self.step = found.step
        self.window, self.epoch_losses = found.state["window"], found.state["epoch_losses"]
        self.best = found.state["best"]
        print(f"resumed from step {self.step}", flush=True)

    def _train_step(self, progress: Progress) -> None:
        epoch, position = divmod(self.step, self.schedule.steps_per_epoch)
        ids = self._batch_ids(epoch, position)
        points, up, draws = self._batch(ids, epoch)
        with self.autocast:
            output: Reconstruction = self.forward(points, up, draws)
        losses = torch.stack([getattr(output, name) for name in LOSSES]).tolist()
        self._require_finite("loss", losses[0], ids)
        diagnostics = {}
        if self.step % DIAGNOSTIC_STEPS == 0:
            diagnostics = self._diagnose(output)
        grad_norm = self._backward(output.loss, ids)
        lr = self.schedule.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.window.append([*losses, grad_norm])
        self.epoch_losses.append(losses[0])
        self._after_step(epoch, lr, diagnostics, progress)

    def _batch_ids(self, epoch: int, position: int) -> Tensor:
        order = random.epoch_order(self.config.seed, epoch, len(self.clouds)).to(self.device)
        return order[position * self.batch_size : (position + 1) * self.batch_size]  # [B]

    def _batch(self, ids: Tensor, epoch: int) -> tuple[Tensor, Tensor, Draws]:
        """Points [B, N, 3], up axes [B, 3] and random numbers of clouds `ids` [B]."""
        return make_batch(self.config.model, self.config, self.clouds, ids, epoch)

    def _backward(self, loss: Tensor, ids: Tensor) -> float:
        """Gradients, clipped where asked for; returns their norm before that. Stops at one that is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self.config.clip_grad if self.config.clip_grad > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._require_finite("gradient", norm, ids)
        return norm

    def _require_finite(self, what: str, value: float, ids: Tensor) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the {what} of step {self.step} is {value}; the optimizer has not stepped.\n"
                f"Samples: {ids.tolist()}\nTry a lower --lr or --clip-grad 1; the newest checkpoint is intact."
            )

    def _diagnose(self, output: Reconstruction) -> dict[str, float]:
        """The norm of each weighted loss's gradient, and how much pooled features differ between clouds."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        found = {"feature_std": float(output.latent.tokens_3d.detach().float().mean(1).std(0).mean())}
        for name in LOSSES[1:]:
            loss = getattr(output, name) * getattr(self.config.model, name.replace("loss_", "loss_weight_"))
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                norms = [g.float().norm() for g in gradients if g is not None]
                found[name.replace("loss", "grad_norm")] = float(torch.stack(norms).norm())
        return found

    # ---- records and checkpoints ----

    def _after_step(self, epoch: int, lr: float, diagnostics: dict[str, float], progress: Progress) -> None:
        last = self.step == self.schedule.num_steps
        speed = self._speed()
        mean = [sum(column) / len(self.window) for column in zip(*self.window, strict=True)]
        progress.show(self._snapshot(epoch, mean, lr, speed), force=last or self.step == 1)
        if self.step % LOG_STEPS == 0 or last or diagnostics:
            record = {"step": self.step, "epoch": epoch, **dict(zip((*LOSSES, "grad_norm"), mean, strict=True)), "lr": lr}
            self.folder.append("metrics", {**record, **diagnostics})
            seconds = time.monotonic() - self._window_began
            timing = {"step": self.step, "seconds": seconds, "clouds_per_second": speed}
            self.folder.append("timings", {**timing, "memory": memory_bytes(self.device)})
            self.window, self._window_began = [], time.monotonic()
        epoch_ends = self.step % self.schedule.steps_per_epoch == 0
        if epoch_ends:
            self._end_epoch()
        if epoch_ends or last or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
            self._save()

    def _speed(self) -> float:
        return self.batch_size * len(self.window) / max(time.monotonic() - self._window_began, 1e-9)

    def _end_epoch(self) -> None:
        mean = sum(self.epoch_losses) / len(self.epoch_losses)
        if not self.best or mean < self.best["loss"]:
            self.best = {"step": self.step, "loss": mean}
        self.epoch_losses = []

    def _save(self) -> None:
        self.folder.sync()
        state = {"window": self.window, "epoch_losses": self.epoch_losses, "best": self.best}
        model = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        checkpoint.save(self.folder.checkpoints, Checkpoint(self.step, model, self._optimizer_tensors(), state))
        keep = {int(self.best["step"])} if self.best else set()
        checkpoint.rotate(self.folder.checkpoints, keep)
        self.folder.write_status("running", self.step)
        self._last_checkpoint = time.monotonic()

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = {p: name for name, p in self.model.named_parameters()}
        return {
            f"{names[p]}/{key}": value.contiguous()
            for p, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        named = dict(self.model.named_parameters())
        for key, value in tensors.items():
            name, slot = key.rsplit("/", 1)
            self.optimizer.state[named[name]][slot] = value.to(self.device)

    def _snapshot(self, epoch: int, mean: list[float], lr: float, speed: float) -> Snapshot:
        return Snapshot(
            epoch, self.config.epochs, self.step, self.schedule.num_steps, self.batch_size, *mean[1:4], lr, speed,
            memory_bytes(self.device),
        )  # fmt: skip

    # ---- the end ----

    def _warn_if_trivial(self) -> None:
        if len(self.clouds) < self.config.batch_size:
            print(f"note: only {len(self.clouds)} clouds, so that is the batch size", flush=True)

    def _stopped(self, signal_number: int) -> int:
        self._save()
        code = 128 + signal_number
        self.folder.write_status("stopped", self.step, exit_code=code)
        print(f"stopped by {signal.Signals(signal_number).name}; the same command resumes at step {self.step}", flush=True)
        return code

    @contextlib.contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Turns what a device can die of into our errors, and leaves the reason in status.json."""
        try:
            yield
        except NonFiniteError as error:
            self.folder.write_status("failed", self.step, exit_code=error.exit_code, message=str(error))
            raise
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            message = (
                f"out of memory at step {self.step} with batches of {self.batch_size} clouds "
                f"(peak {memory_bytes(self.device) / 2**30:.1f} GiB). Try --batch-size {max(1, self.batch_size // 2)}."
            )
            self.folder.write_status("failed", self.step, exit_code=OutOfMemoryError.exit_code, message=message)
            raise OutOfMemoryError(message) from error

    def _finish(self) -> None:
        model = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        write_atomically(self.folder.path / "model.safetensors", safetensors.torch.save(model))
        result = ""
        if self.config.evaluate:
            from jointmae.evaluate import evaluate_run  # scikit-learn and matplotlib load only when they are needed

            result = evaluate_run(self.folder, self.config, self.model.eval(), self.clouds)
        print(f"{result}\nrun       {self.folder.path}", flush=True)
        self.folder.write_status("finished", self.step, exit_code=0, result=result)


def make_batch(
    model_config: ModelConfig, config: TrainConfig, clouds: PointClouds, ids: Tensor, epoch: int
) -> tuple[Tensor, Tensor, Draws]:
    """Points [B, N, 3], augmented and in the unit sphere, up axes [B, 3] and random numbers of clouds `ids` [B]."""
    points = clouds.batch(ids, model_config.num_points, config.seed, epoch)
    if config.augment == "scale+shift":
        scale_keys, shift_keys = (
            random.keys(config.seed, epoch, ids, purpose) for purpose in (Purpose.SCALE, Purpose.SHIFT)
        )
        points = scale_and_shift(points, scale_keys, shift_keys, normalize=model_config.normalize_input)
    return points, clouds.up[ids], draw(model_config, config.seed, epoch, ids)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them, so that the step at hand ends and is saved."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt  # asked twice: at once, without saving

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
