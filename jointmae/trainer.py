"""The pre-training loop: `train(config)`. B clouds of a batch, N points.

Everything random is a function of (seed, epoch, sample id), every number in metrics.jsonl of config, data and seed: a
run that was killed and resumed ends in the same bytes as one that was not. On a GPU that is so as far as PyTorch's own
kernels are deterministic, and by default not all of them are.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jointmae import checkpoint, random
from jointmae.checkpoint import Checkpoint
from jointmae.config import ModelConfig, TrainConfig
from jointmae.data import PointClouds, concat, load, normalize_unit_sphere, scale_and_shift, splits_of
from jointmae.device import choose_device, memory_bytes, out_of_memory_errors
from jointmae.diagnosis import Diagnosis
from jointmae.distributed import World, joined, lost_processes_named
from jointmae.errors import CheckpointError, DiskError, JointMAEError, NonFiniteError, UsageError, WorkerError
from jointmae.files import to_json, write_atomically
from jointmae.limits import require_valid
from jointmae.model import JointMAE, Reconstruction
from jointmae.model.masking import Draws, draw
from jointmae.optimizer import adamw, load_state_tensors, state_tensors
from jointmae.progress import Pace, Progress, Snapshot
from jointmae.random import Purpose
from jointmae.run_folder import RunFolder, default_folder
from jointmae.schedule import Schedule
from jointmae.signals import Stopped, StopSignals

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
    with joined(device) as world:
        return _train(config, device, world)


def _train(config: TrainConfig, device: torch.device, world: World) -> int:
    with out_of_memory_errors("while reading the data", "Train on fewer or smaller files."):
        clouds = load_training_data(config, device)
    path = Path(config.out) if config.out else default_folder(config)
    schedule = Schedule(config, len(clouds) // min(config.batch_size, len(clouds)))
    _require_enough(min(config.batch_size, len(clouds)), world.size, config.accumulate)
    run = RunFolder(path, config, clouds.sha256)
    if run.is_finished(schedule.num_steps, evaluated=config.evaluate):
        if world.leads:
            print(f"finished  {path}\n{run.status().get('result', '')}".rstrip())
        return 0
    if world.leads:
        print(describe(config, clouds, schedule, path, world), flush=True)
    if config.dry_run:
        return 0
    with contextlib.closing(run):
        if world.leads:
            run.claim()
        return Trainer(config, clouds, schedule, run, device, world).run()


def _require_enough(batch_size: int, num_processes: int, num_parts: int) -> None:
    if batch_size < num_processes * num_parts:
        raise UsageError(
            f"a batch of {batch_size} clouds is too small for {num_processes} processes with --accumulate {num_parts}: "
            f"wanted at least {num_processes * num_parts}"
        )


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


def describe(config: TrainConfig, clouds: PointClouds, schedule: Schedule, path: Path, world: World) -> str:
    """What is about to be trained, and where."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in JointMAE(config.model).parameters())
    lines = [
        f"jointmae: {config.preset} ({parameters / 1e6:.2f} M parameters), recipe {config.recipe}",
        f"data      {clouds.describe()}",
        f"schedule  {schedule.num_steps} steps of {min(config.batch_size, len(clouds))} clouds, {config.epochs} epochs",
        f"run       {path}",
    ]
    if world.size > 1:
        lines.append(f"processes {world.size}")
    if len(clouds) < config.batch_size:
        lines.append(f"note: only {len(clouds)} clouds, so that is the batch size")
    there, wanted = clouds.points.shape[1], config.model.num_points
    if there < wanted:
        lines.append(f"note: clouds have {there:,} points, --num-points {wanted} repeats them")
    if config.warmup_epochs >= config.epochs:
        lines.append(f"note: the warm-up of {config.warmup_epochs:g} epochs takes the whole run; see --warmup-epochs")
    return "\n".join(lines)


class Trainer:
    """One run: on one device, or this process's part of one on several."""

    def __init__(
        self,
        config: TrainConfig,
        clouds: PointClouds,
        schedule: Schedule,
        run: RunFolder,
        device: torch.device,
        world: World,
    ) -> None:
        self.config, self.clouds, self.schedule, self.folder, self.device = config, clouds, schedule, run, device
        self.world = world
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.batch_size = min(config.batch_size, len(clouds))
        with self._memory_errors("while building the model"):
            self.model = JointMAE(config.model, seed=config.seed).to(device, self.dtype).train()
        self.optimizer = adamw(self.model, config)
        self.forward: Any = self._compiled() if self._wants_compile() else self.model
        if world.size > 1:
            self.forward = DistributedDataParallel(self.forward)
        bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.step = 0
        self.window: list[list[float]] = []  # the losses of steps that have no line in metrics.jsonl yet
        self.epoch_losses: list[float] = []
        self.best: dict[str, float] = {}  # the epoch with the lowest mean loss
        self._order_epoch, self._order = -1, torch.empty(0, dtype=torch.int64)  # sorted once an epoch, not once a step
        self._saved_step = 0  # of the newest checkpoint in the folder
        self._last_checkpoint = time.monotonic()
        self._timed_steps, self._timed_from = 0, time.monotonic()  # since the last line
        self.pace = Pace()

    def _wants_compile(self) -> bool:
        return self.config.compile == "on" or (self.config.compile == "auto" and self.device.type == "cuda")

    def _compiled(self) -> Any:
        # `_diagnose` goes backward several times through one graph, and a run may resume just before it.
        torch._functorch.config.donated_buffer = False
        return torch.compile(self.model, fullgraph=True, dynamic=False)

    def _memory_errors(self, where: str) -> contextlib.AbstractContextManager[None]:
        smaller = f"--batch-size {self.batch_size // 2}" if self.batch_size > 1 else "a smaller --preset"
        return out_of_memory_errors(
            f"{where} with batches of {self.batch_size} clouds (peak {memory_bytes(self.device) / 2**30:.1f} GiB)",
            f"Try {smaller} and another --out.",
        )

    # ---- the run ----

    def run(self) -> int:
        """From the newest checkpoint to the last step, then evaluation and report; returns the exit code."""
        found = self._checkpoint_to_resume()
        self.world.on_loss = lambda why: self._record("failed", WorkerError.exit_code, why)
        if self.world.leads:
            self.folder.begin()
        try:
            with self._failures_recorded(), lost_processes_named(), StopSignals() as signals:
                self._resume(found)
                self._train(signals)
                self._finish()
        except Stopped as stop:
            return self._stopped(stop)
        return 0

    def _train(self, signals: StopSignals) -> None:
        progress = Progress() if self.world.leads else contextlib.nullcontext()
        with signals.deferred(), progress as shown:
            while self.step < self.schedule.num_steps and not self._stops(signals):
                with self._memory_errors(f"at step {self.step}"):
                    self._train_step(shown)
            self._save()
            self.world.meet()  # torchrun ends all processes as soon as one has left: not while the first one saves

    def _stops(self, signals: StopSignals) -> bool:
        """Whether a process was asked to stop: all do, after the same step."""
        wanted = signals.wanted
        if self.world.size > 1:
            wanted = int(self.world.most(torch.tensor(wanted, device=self.device)))
            if wanted:  # a signal that has come meanwhile counts after the next step, when all know of it
                signals.wanted = signals.wanted or wanted
        return wanted != 0

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        """None for a new run. Raises UsageError if --resume forbids it, CheckpointError if all are damaged or gone."""
        if self.config.resume not in ("auto", "never"):
            return checkpoint.load(Path(self.config.resume))
        if self.config.resume == "never" and checkpoint.steps(self.folder.checkpoints):
            raise UsageError(f"{self.folder.path} holds a run and --resume is never: choose another --out")
        found, complaints = checkpoint.load_newest(self.folder.checkpoints)
        for complaint in complaints[:3]:
            print(f"warning: {complaint}; trying an older checkpoint", file=sys.stderr, flush=True)
        if found is None and (complaints or self.folder.status().get("checkpoint")):
            raise CheckpointError(
                f"{self.folder.checkpoints}: no valid checkpoint left; remove {self.folder.path} to start again"
            )
        return found

    def _resume(self, found: Checkpoint | None) -> None:
        logged = 0
        if found is not None:
            logged = self._restore(found)
            if self.config.resume == "auto":
                self._saved_step = found.step
        if not self.world.leads:
            return
        if found is not None:
            checkpoint.discard_after(self.folder.checkpoints, found.step)
            print(f"resumed from step {found.step}", flush=True)
        self.folder.cut_after(logged)
        self._write_status("running")

    def _restore(self, found: Checkpoint) -> int:
        """Takes over all that `found` holds; returns the step of its last line in metrics.jsonl."""
        try:
            self.model.load_state_dict(found.model)
            load_state_tensors(self.optimizer, self.model, found.optimizer)
            self.window, self.epoch_losses = found.state["window"], found.state["epoch_losses"]
            self.best, logged = found.state["best"], int(found.state["logged"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"the checkpoint of step {found.step} is of another model ({reason})") from error
        self.step = found.step
        return logged

    def _train_step(self, progress: Progress | None) -> None:
        epoch, position = divmod(self.step, self.schedule.steps_per_epoch)
        ids = self._batch_ids(epoch, position)
        losses, diagnostics = self._gradients(ids, epoch)
        grad_norm = self._clip(ids)
        lr = self.schedule.lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        if progress is None:
            return
        self.window.append([*losses, grad_norm])
        self.epoch_losses.append(losses[0])
        self._after_step(epoch, lr, diagnostics, progress)

    def _reconstruct(self, points: Tensor, up: Tensor, draws: Draws, ids: Tensor) -> Reconstruction:
        try:
            with self.autocast:
                output: Reconstruction = self.forward(points, up, draws)
        except ValueError as error:  # on a CPU, ops refuse a prediction that is not finite before there is a loss
            if "must be finite" not in str(error):
                raise
            raise self._not_finite("prediction", math.nan, ids) from error
        return output

    def _batch_ids(self, epoch: int, position: int) -> Tensor:
        if self._order_epoch != epoch:
            self._order_epoch = epoch
            self._order = random.epoch_order(self.config.seed, epoch, len(self.clouds), self.device)  # [S]
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]  # [B]

    def _batch(self, ids: Tensor, epoch: int) -> tuple[Tensor, Tensor, Draws]:
        """Points [B, N, 3], up axes [B, 3] and random numbers of clouds `ids` [B]."""
        points, up, draws = make_batch(self.config.model, self.config, self.clouds, ids, epoch)
        return points.to(self.dtype), up.to(self.dtype), draws

    def _gradients(self, ids: Tensor, epoch: int) -> tuple[list[float], dict[str, float]]:
        """The gradients of batch `ids`, of which this process computes its share, part by part; losses, diagnostics."""
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)
        diagnosis = Diagnosis(self.model, self.config.model) if self.step % DIAGNOSTIC_STEPS == 0 else None
        parts = self.world.share(ids).tensor_split(self.config.accumulate)
        for i, part in enumerate(parts):
            weight = len(part) / len(ids)
            with self._gradients_added_up(last=i == len(parts) - 1):
                output = self._reconstruct(*self._batch(part, epoch), part)
                if diagnosis is not None:
                    diagnosis.add(output, weight)
                # DistributedDataParallel gives the mean over processes; what is wanted is the sum of all parts
                (output.loss * (weight * self.world.size)).backward()
            totals += weight * torch.stack([getattr(output, name).detach() for name in LOSSES])
        losses = self.world.sum(totals).tolist()
        self._require_finite("loss", losses[0], ids)
        return losses, {} if diagnosis is None else diagnosis.of(self.world)

    def _gradients_added_up(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Between processes, after the last part alone."""
        if last or self.world.size == 1:
            return contextlib.nullcontext()
        no_sync: contextlib.AbstractContextManager[None] = self.forward.no_sync()
        return no_sync

    def _clip(self, ids: Tensor) -> float:
        """Clips gradients where asked for; returns their norm before that. Stops at one that is not finite."""
        limit = self.config.clip_grad if self.config.clip_grad > 0 else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._require_finite("gradient", norm, ids)
        return norm

    def _require_finite(self, what: str, value: float, ids: Tensor) -> None:
        if not math.isfinite(value):
            raise self._not_finite(what, value, ids)

    def _not_finite(self, what: str, value: float, ids: Tensor) -> NonFiniteError:
        """What to raise; the clouds of the batch are left in non_finite.json."""
        clouds = [{"id": i, "name": self.clouds.names[i]} for i in ids.tolist()]
        record = {"step": self.step, "what": what, "value": str(value), "clouds": clouds}
        file, where = self.folder.path / "non_finite.json", ""
        with contextlib.suppress(DiskError):  # the message names the first of them
            write_atomically(file, to_json(record))
            where = f" (see {file})"
        shown = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "") + where
        return NonFiniteError(
            f"the {what} of step {self.step} is {value}; the optimizer has not stepped.\n"
            f"Clouds of the batch: {shown}\n"
            "Try a lower --lr or --clip-grad 1 with another --out; the newest checkpoint here is intact."
        )

    # ---- records and checkpoints ----

    def _after_step(self, epoch: int, lr: float, diagnostics: dict[str, float], progress: Progress) -> None:
        self._timed_steps += 1
        self.pace.step()
        last = self.step == self.schedule.num_steps
        progress.show(self._snapshot(epoch, lr), force=last or self.step == 1)
        if self.step % LOG_STEPS == 0 or diagnostics:
            self._log(diagnostics)
            self.window = []
        epoch_ends = self.step % self.schedule.steps_per_epoch == 0
        if epoch_ends:
            self._end_epoch()
        if epoch_ends or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
            self._save()

    def _log(self, diagnostics: dict[str, float]) -> None:
        """One line of metrics.jsonl, the means of `window`, and one of timings.jsonl."""
        names = (*LOSSES, "grad_norm")
        record = {"step": self.step, "epoch": (self.step - 1) // self.schedule.steps_per_epoch}
        means = dict(zip(names, _column_means(self.window), strict=True))
        self.folder.append("metrics", {**record, **means, "lr": self.schedule.lr(self.step - 1), **diagnostics})
        timing = {"step": self.step, "seconds": time.monotonic() - self._timed_from, "clouds_per_second": self._speed()}
        self.folder.append("timings", {**timing, "memory": memory_bytes(self.device)})
        self._timed_steps, self._timed_from = 0, time.monotonic()

    def _speed(self) -> float:
        """Clouds a second since the last line."""
        return self.batch_size * self._timed_steps / max(time.monotonic() - self._timed_from, 1e-9)

    def _end_epoch(self) -> None:
        mean = sum(self.epoch_losses) / len(self.epoch_losses)
        if not self.best or mean < self.best["loss"]:
            self.best = {"step": self.step, "loss": mean}
        self.epoch_losses = []

    def _save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.step == self._saved_step or not self.world.leads:
            return
        self.folder.sync()
        logged = self.step - len(self.window)
        state = {"window": self.window, "epoch_losses": self.epoch_losses, "best": self.best, "logged": logged}
        optimizer = state_tensors(self.optimizer, self.model)
        checkpoint.save(self.folder.checkpoints, Checkpoint(self.step, self._weights(), optimizer, state))
        checkpoint.rotate(self.folder.checkpoints, keep={int(self.best["step"])} if self.best else set())
        self._saved_step, self._last_checkpoint = self.step, time.monotonic()
        self._write_status("running")

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.contiguous() for name, value in self.model.state_dict().items()}

    def _snapshot(self, epoch: int, lr: float) -> Snapshot:
        loss_3d, loss_2d, loss_cross = _column_means(self.window)[1:4]
        return Snapshot(
            epoch=epoch,
            num_epochs=self.config.epochs,
            step=self.step,
            num_steps=self.schedule.num_steps,
            loss_3d=loss_3d,
            loss_2d=loss_2d,
            loss_cross=loss_cross,
            lr=lr,
            clouds_per_second=self._speed(),
            seconds_left=self.pace.seconds_for(self.schedule.num_steps - self.step),
            memory_bytes=memory_bytes(self.device),
        )

    # ---- the end ----

    def _finish(self) -> None:
        """The last line, the weights, the evaluation: what other processes need not wait for."""
        if not self.world.leads:
            return
        if self.window:  # steps after the last full line; the checkpoint keeps them, because --max-steps may grow
            self._log({})
        self.folder.sync()
        write_atomically(self.folder.path / "model.safetensors", safetensors.torch.save(self._weights()))
        result = self._evaluate() if self.config.evaluate else ""
        print(f"{result}\nrun       {self.folder.path}".lstrip(), flush=True)
        self._write_status("finished", exit_code=0, evaluated=self.config.evaluate, result=result)

    def _evaluate(self) -> str:
        from jointmae.evaluate import evaluate_run  # scikit-learn and matplotlib load only when they are needed

        advice = "The trained model is saved; --no-evaluate leaves the evaluation out."
        with out_of_memory_errors("while evaluating", advice):
            return evaluate_run(self.folder, self.config, self.model.eval(), self.clouds)

    def _stopped(self, stop: Stopped) -> int:
        self.world.ignore_termination()
        if not self.world.leads:
            return stop.exit_code
        self._record("stopped", stop.exit_code, f"stopped by {stop.name}")
        command = "the same command" if self.config.resume == "auto" else "the same command without --resume"
        with contextlib.suppress(OSError):  # stdout may be on a full disk, or closed
            print(f"stopped by {stop.name}; {command} resumes at step {self._saved_step}", flush=True)
        return stop.exit_code

    @contextlib.contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Leaves the reason of a failure in status.json; the exception goes on."""
        try:
            yield
        except JointMAEError as error:
            self._record("failed", error.exit_code, str(error))
            raise
        except Exception as error:
            self._record("failed", 1, f"{type(error).__name__}: {error}")
            raise

    def _record(self, state: str, exit_code: int, message: str) -> None:
        if not self.world.leads:
            return
        with contextlib.suppress(DiskError):  # on a full disk the message on stderr has to do
            self._write_status(state, exit_code=exit_code, message=message)

    def _write_status(self, state: str, **more: Any) -> None:
        self.folder.write_status(state, step=self.step, checkpoint=self._saved_step, **more)


def _column_means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


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
    elif model_config.normalize_input:
        points = normalize_unit_sphere(points)
    return points, clouds.up[ids], draw(model_config, config.seed, epoch, ids)
