"""The loop of every run that trains: `run(task)`. B clouds of a batch.

Everything random is a function of (seed, epoch, sample id), so that a run which was killed and resumed ends in the same
bytes as one that was not. What decides those bytes, and on which devices: `jointmae.run_folder`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from jointmae import checkpoint, random
from jointmae.checkpoint import Checkpoint
from jointmae.config import RunConfig
from jointmae.device import (
    choose_device,
    is_out_of_memory,
    keep_freed_memory,
    memory_bytes,
    out_of_memory_errors,
    return_freed_memory,
)
from jointmae.distributed import World, joined, lost_processes_named
from jointmae.errors import (
    CheckpointError,
    DiskError,
    JointMAEError,
    NonFiniteError,
    OutOfMemoryError,
    UsageError,
    WorkerError,
)
from jointmae.files import to_json, write_atomically
from jointmae.optimizer import load_state_tensors, state_tensors
from jointmae.parallel import is_sharded, like, whole
from jointmae.progress import Pace, Progress, Snapshot
from jointmae.run_folder import RunFolder
from jointmae.schedule import Schedule
from jointmae.signals import Stopped, StopSignals
from jointmae.step import Step
from jointmae.task import Task
from jointmae.text import counted, printable

if TYPE_CHECKING:
    from jointmae.board import Board

LOG_STEPS = 10  # a line of metrics.jsonl is a mean over at most so many steps; on a GPU, so many may be under way
DIAGNOSTIC_STEPS = 100  # gradient norm of each loss, and the spread of features; such a step has a line
CHECKPOINT_SECONDS = 30.0
_SHOWN_BAD_FILES = 5

Result = TypeVar("Result")


@contextlib.contextmanager
def session(config: RunConfig) -> Iterator[tuple[torch.device, World]]:
    """The device that `config` asks for and the processes that this one works with, for the runs within."""
    device = choose_device(config.device)
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    with joined(device) as world, lost_processes_named():
        yield device, world


def run(make_task: Callable[[], Task], world: World) -> int:
    """Trains, or goes on, or finds that all is done; returns the exit code."""
    with out_of_memory_errors("while reading the data", "Train on fewer or smaller files."):
        with world.in_turn():  # what the first one decodes, the others of its machine find in the cache
            task = make_task()
    config, clouds = task.config, task.clouds
    path = Path(config.out) if config.out else task.default_folder
    schedule = Schedule(config, len(clouds) // min(config.batch_size, len(clouds)))
    _require_enough(min(config.batch_size, len(clouds)), world.size, config.accumulate)
    if config.auto_batch and config.parallel == "fsdp" and world.size > 1:
        raise UsageError(
            "--auto-batch tries what fits in each process alone, --parallel fsdp has none: use --accumulate"
        )
    folder = RunFolder(path, config, task.inputs)
    if folder.is_finished(schedule.num_steps, evaluated=config.evaluate):
        if world.leads:
            print(f"finished  {path}\n{folder.status().get('result', '')}".rstrip())
        return 0
    if world.leads:
        print(describe(task, schedule, path, world), flush=True)
    if config.dry_run:
        return 0
    with contextlib.closing(folder):
        if world.leads:
            folder.claim()
        world.meet()  # who is refused the folder ends here, before others read what is in it
        return Trainer(task, schedule, folder, world).run()


def _require_enough(batch_size: int, num_processes: int, num_parts: int) -> None:
    if batch_size < num_processes * num_parts:
        clouds, processes = counted(batch_size, "cloud"), counted(num_processes, "process", "es")
        raise UsageError(
            f"a batch of {clouds} is too small for {processes} with --accumulate {num_parts}: "
            f"wanted at least {num_processes * num_parts}"
        )


def describe(task: Task, schedule: Schedule, path: Path, world: World) -> str:
    """What is about to be trained, and where."""
    config, clouds = task.config, task.clouds
    first, *more = task.describe()
    lines = [
        first,
        f"data      {clouds.describe()}",
        f"schedule  {counted(schedule.num_steps, 'step')} of {counted(min(config.batch_size, len(clouds)), 'cloud')}, "
        f"{counted(config.epochs, 'epoch')}",
        f"run       {path}",
        *more,
    ]
    lines += [printable(f"left out  {file}") for file in clouds.bad_files[:_SHOWN_BAD_FILES]]
    if len(clouds.bad_files) > _SHOWN_BAD_FILES:
        lines.append(f"left out  and {len(clouds.bad_files) - _SHOWN_BAD_FILES:,} more files")
    if world.size > 1:
        lines.append(f"processes {world.size}")
    if len(clouds) < config.batch_size:
        lines.append(f"note: only {counted(len(clouds), 'cloud')}, so that is the batch size")
    if config.warmup_epochs >= config.epochs:
        lines.append(f"note: the warm-up of {config.warmup_epochs:g} epochs takes the whole run; see --warmup-epochs")
    return "\n".join(lines)


class Trainer:
    """One run: on one device, or this process's part of one on several."""

    def __init__(self, task: Task, schedule: Schedule, folder: RunFolder, world: World | None = None) -> None:
        self.task, self.schedule, self.folder = task, schedule, folder
        self.config, self.clouds = task.config, task.clouds
        self.world = world or World()
        self.device = self.clouds.device
        self.batch_size = min(self.config.batch_size, len(self.clouds))
        dtype = torch.float64 if self.config.precision == "fp64" else torch.float32
        advice = "Try a smaller --preset and another --out."
        with out_of_memory_errors(f"while building the model ({self._peak()})", advice):
            self.model = task.new_model().to(self.device, dtype).train()
            self.objective = task.objective(self.model)
            self.one_step = Step(self.objective, self.clouds, self.world)
        self.step = 0
        self._results: list[Tensor] = []  # of the last steps, as `Step.run` gives them, still on the device
        self.window: list[list[float]] = []  # losses and gradient norm of each fetched step since the last line
        self.epoch_losses: list[float] = []
        self.best: dict[str, float] = {}  # the step and the score of the epoch that was best
        self._order_epoch, self._order = -1, torch.empty(0, dtype=torch.int64)  # sorted once an epoch, not once a step
        self._saved_step = 0  # of the newest checkpoint in the folder
        self._last_checkpoint = time.monotonic()
        self._timed_steps, self._timed_from = 0, time.monotonic()  # since the last line
        self.pace = Pace()
        self.board: Board | None = None  # --tensorboard, in the leading process

    # ---- the run ----

    def run(self) -> int:
        """From the newest checkpoint to the last step, then evaluation and report; returns the exit code."""
        found = self._checkpoint_to_resume()
        self._require_same_start(found.step if found else 0)
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
            if self.config.auto_batch and self.step < self.schedule.num_steps:
                self._set_parts(self._parts_that_fit())
            while not self._asked(signals) and self.step < self.schedule.num_steps:
                self._train_step(shown)
            self._save()
            self.world.meet()  # torchrun ends all processes as soon as one has left: not while the first one saves

    def _asked(self, signals: StopSignals) -> bool:
        """Whether to stop; saves first where that is due. What one process is asked for, all do after the same step."""
        due = self.world.leads and time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS
        wanted, save = self.world.most(torch.tensor([float(signals.wanted), float(due)])).tolist()
        if wanted:  # a signal that has come meanwhile counts after the next step, when all know of it
            signals.wanted = signals.wanted or int(wanted)
        if save:
            self._save()
        return bool(wanted)

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        """None for a new run. Raises UsageError if --resume forbids it, CheckpointError if all are damaged or gone."""
        if self.config.resume not in ("auto", "never"):
            return checkpoint.load(Path(self.config.resume))
        if self.config.resume == "never" and checkpoint.steps(self.folder.checkpoints):
            raise UsageError(f"{self.folder.path} holds a run and --resume is never: choose another --out")
        found, complaints = checkpoint.load_newest(self.folder.checkpoints)
        for complaint in complaints[: 3 if self.world.leads else 0]:
            print(f"warning: {complaint}; trying an older checkpoint", file=sys.stderr, flush=True)
        if found is None and (complaints or self.folder.status().get("checkpoint")):
            raise CheckpointError(
                f"{self.folder.checkpoints}: no valid checkpoint left; remove {self.folder.path} to start again"
            )
        return found

    def _require_same_start(self, step: int) -> None:
        """Waits until all processes have read what there is; the folder may change only then."""
        last, first = self.world.most(torch.tensor([step, -step], dtype=torch.float64)).tolist()
        if last != -first:
            raise UsageError(
                f"processes would go on at different steps ({-first:.0f} and {last:.0f}): --out {self.folder.path} "
                "must be one folder that all of them see"
            )

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
        self.board = self.task.board(self.folder, self.schedule.num_steps, logged)
        self._write_status("running")

    def _restore(self, found: Checkpoint) -> int:
        """Takes over all that `found` holds; returns the step of its last line in metrics.jsonl."""
        try:
            here = self.model.state_dict()
            weights = {name: like(value, here[name]) if name in here else value for name, value in found.model.items()}
            self.model.load_state_dict(weights)
            load_state_tensors(self.one_step.optimizer, self.model, found.optimizer)
            self.window, self.epoch_losses = found.state["window"], found.state["epoch_losses"]
            self.best, logged = found.state["best"], int(found.state["logged"])
            if self.config.auto_batch:  # sums in the order that they had
                self.one_step.num_parts = max(self.config.accumulate, int(found.state.get("parts", 1)))
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"the checkpoint of step {found.step} is of another model ({reason})") from error
        self.step = found.step
        return logged

    def _train_step(self, progress: Progress | None) -> None:
        ids, epoch = self._batch_ids()
        diagnostics = self._diagnose(ids, epoch)
        self._results.append(self._result(ids, epoch))
        self.step += 1
        self._after_step(diagnostics, progress)

    def _diagnose(self, ids: Tensor, epoch: int) -> dict[str, float]:
        if self.step % DIAGNOSTIC_STEPS != 0 or not self.objective.has_diagnostics:
            return {}
        return self._with_memory(ids, epoch, lambda: self.one_step.diagnose(ids, epoch))

    def _result(self, ids: Tensor, epoch: int) -> Tensor:
        """Of one more step: its losses and gradient norm."""
        lr = self.schedule.lr(self.step)
        return self._with_memory(ids, epoch, lambda: self.one_step.run(ids, epoch, lr))

    def _with_memory(self, ids: Tensor, epoch: int, work: Callable[[], Result]) -> Result:
        """`work()`, again in smaller parts if memory is short and --auto-batch allows it."""
        while True:
            buffers = [buffer.clone() for buffer in self.model.buffers()] if self.config.auto_batch else []
            try:
                return work()
            except ValueError as error:  # on a CPU, ops refuse a prediction that is not finite before there is a loss
                if "must be finite" not in str(error):
                    raise
                raise self._not_finite(self.step, "prediction", math.nan) from error
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                peak = self._peak()
            if self.world.size > 1:  # the others are in the middle of this step: nothing can be tried
                raise self._out_of_memory(None, peak)
            # here, where nothing holds the tensors of the failed step any more
            self.one_step.discard()
            return_freed_memory(self.device)
            num_parts = self.one_step.parts_that_fit(ids, epoch, self.world, 2 * self.one_step.num_parts)
            if not self.config.auto_batch or num_parts == 0:
                raise self._out_of_memory(num_parts, peak)
            for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
            self._set_parts(num_parts)

    def _batch_ids(self) -> tuple[Tensor, int]:
        """The clouds int64 [B] of the next step, and its epoch."""
        epoch, position = divmod(self.step, self.schedule.steps_per_epoch)
        if self._order_epoch != epoch:
            self._order_epoch = epoch
            self._order = random.epoch_order(self.config.seed, epoch, len(self.clouds), self.device)  # [S]
        return self._order[position * self.batch_size : (position + 1) * self.batch_size], epoch

    def _not_finite(self, step: int, what: str, value: float) -> NonFiniteError:
        """What to raise; the clouds of the batch are left in non_finite.json."""
        self.step = step
        ids, _ = self._batch_ids()
        clouds = [{"id": i, "name": self.clouds.names[i]} for i in ids.tolist()]
        record = {"step": step, "what": what, "value": str(value), "clouds": clouds}
        file, where = self.folder.path / "non_finite.json", ""
        with contextlib.suppress(DiskError):  # the message names the first of them
            if self.world.leads or not file.exists():  # a prediction that is not finite is seen by one process alone
                write_atomically(file, to_json(record))
            where = f" (see {file})"
        shown = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "") + where
        return NonFiniteError(
            f"the {what} of step {step} is {value}; the optimizer has not stepped.\n"
            f"Clouds of the batch: {shown}\n"
            "Try a lower --lr or --clip-grad 1 with another --out; the newest checkpoint here is intact."
        )

    # ---- memory ----

    def _parts_that_fit(self) -> int:
        """For all processes, before the first step."""
        ids, epoch = self._batch_ids()
        at_least = self.one_step.num_parts
        return self._with_memory(ids, epoch, lambda: self.one_step.parts_that_fit(ids, epoch, self.world, at_least))

    def _set_parts(self, num_parts: int) -> None:
        """Computes a batch in so many parts from now on; 0: there is not even memory for single clouds."""
        if num_parts == 0:
            raise self._out_of_memory(0, self._peak())
        if num_parts > self.one_step.num_parts and self.world.leads:
            print(f"note: not enough memory, so a batch is computed in {num_parts} parts (--accumulate)", flush=True)
        self.one_step.num_parts = num_parts

    def _out_of_memory(self, num_parts: int | None, peak: str) -> OutOfMemoryError:
        """What to raise where `num_parts` would fit, or nothing (0), or where nothing was tried (None)."""
        clouds = counted(-(-self.batch_size // (self.world.size * self.one_step.num_parts)), "cloud")
        advice = "not even a single cloud fits: try a smaller --preset and another --out"
        if num_parts is None:
            advice = f"go on with --accumulate {2 * self.one_step.num_parts}"
        elif num_parts > 0:
            fitting = -(-self.batch_size // (self.world.size * num_parts))
            advice = f"a try with {fitting} did fit: go on with --accumulate {num_parts}, or with --auto-batch"
        return OutOfMemoryError(f"out of memory at step {self.step} with {clouds} at once ({peak}); {advice}")

    def _peak(self) -> str:
        return f"peak {memory_bytes(self.device) / 2**30:.1f} GiB"

    # ---- records and checkpoints ----

    def _after_step(self, diagnostics: dict[str, float], progress: Progress | None) -> None:
        self._timed_steps += 1
        self.pace.step()
        last = self.step == self.schedule.num_steps
        epoch_ends = self.step % self.schedule.steps_per_epoch == 0
        validated = self._validate() if epoch_ends else {}
        line_due = self.step % LOG_STEPS == 0 or bool(diagnostics) or bool(validated)
        if self.device.type == "cpu" or line_due or epoch_ends or last:
            self._fetch()
            if progress is not None:
                progress.show(self._snapshot(), force=last or self.step == 1)
        if line_due:
            self._log({**diagnostics, **validated})
            self.window = []
        if epoch_ends:
            self._end_epoch(validated)
            is_best = self.task.keeps_best and self.best["step"] == self.step
            if self.task.saves_every_epoch or is_best:
                self._save()
        if epoch_ends or last:
            self._draw(force=last)

    def _validate(self) -> dict[str, float]:
        """What the task finds at the end of an epoch; nothing in other processes than the leading one."""
        if not self.task.validates:
            return {}
        self._fetch()
        model = self._in_one_piece()
        return self.task.validate(model) if self.world.leads else {}

    def _draw(self, force: bool) -> None:
        model = self._in_one_piece() if self.task.draws else None
        if self.board is not None and model is not None:
            self.board.draw(model, self.step, force)

    def _in_one_piece(self) -> nn.Module:
        """The model; a copy where each process has a shard of the weights, which all of them take part in."""
        return self._whole_model(self._weights()) if is_sharded(self.model) else self.model

    def _fetch(self) -> None:
        """Waits for the device: the losses of the last steps. Raises NonFiniteError naming the first that is not."""
        if not self._results:
            return
        rows = torch.stack(self._results).tolist()
        first = self.step - len(rows)
        self._results = []
        for step, row in enumerate(rows, first):
            for what, value in (("loss", row[0]), ("gradient", row[-1])):
                if not math.isfinite(value):
                    raise self._not_finite(step, what, value)
            self.window.append(row)
            self.epoch_losses.append(row[0])

    def _log(self, diagnostics: dict[str, float]) -> None:
        """One line of metrics.jsonl, the means of `window`, and one of timings.jsonl."""
        if not self.world.leads:
            return
        names = (*self.objective.names, "grad_norm")
        record = {"step": self.step, "epoch": (self.step - 1) // self.schedule.steps_per_epoch}
        means = dict(zip(names, _column_means(self.window), strict=True))
        self._append("metrics", {**record, **means, "lr": self.schedule.lr(self.step - 1), **diagnostics})
        timing = {"step": self.step, "seconds": time.monotonic() - self._timed_from, "clouds_per_second": self._speed()}
        self._append("timings", {**timing, "memory": memory_bytes(self.device)})
        self._timed_steps, self._timed_from = 0, time.monotonic()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        self.folder.append(name, record)
        if self.board is not None:
            self.board.append(name, record)

    def _speed(self) -> float:
        """Clouds a second since the last line."""
        return self.batch_size * self._timed_steps / max(time.monotonic() - self._timed_from, 1e-9)

    def _end_epoch(self, validated: dict[str, float]) -> None:
        score = self.task.score(sum(self.epoch_losses) / len(self.epoch_losses), validated)
        if self.task.validates:  # which the leading process alone has done; all have to save the same steps
            mine = score if self.world.leads else -math.inf
            score = float(self.world.most(torch.tensor(mine, dtype=torch.float64)))
        if not self.best or score > self.best["score"]:
            self.best = {"step": self.step, "score": score}
        self.epoch_losses = []

    def _save(self) -> None:
        """A checkpoint of this step, unless there is one. Every process takes part, as each may hold a shard."""
        if self.step == self._saved_step:
            return
        self._fetch()
        weights, optimizer = self._weights(), state_tensors(self.one_step.optimizer, self.model)
        if self.world.leads:
            self.folder.sync()
            logged = self.step - len(self.window)
            state = {"window": self.window, "epoch_losses": self.epoch_losses, "best": self.best, "logged": logged}
            state["parts"] = self.one_step.num_parts
            checkpoint.save(self.folder.checkpoints, Checkpoint(self.step, weights, optimizer, state))
            checkpoint.rotate(self.folder.checkpoints, keep={int(self.best["step"])} if self.best else set())
        self._saved_step, self._last_checkpoint = self.step, time.monotonic()
        self._write_status("running")

    def _weights(self) -> dict[str, Tensor]:
        return {name: whole(value).contiguous() for name, value in self.model.state_dict().items()}

    def _snapshot(self) -> Snapshot:
        means = dict(zip(self.objective.names, _column_means(self.window), strict=False))
        return Snapshot(
            epoch=(self.step - 1) // self.schedule.steps_per_epoch,
            num_epochs=self.config.epochs,
            step=self.step,
            num_steps=self.schedule.num_steps,
            losses={label: means[name] for name, label in self.objective.shown.items()},
            lr=self.schedule.lr(self.step - 1),
            clouds_per_second=self._speed(),
            seconds_left=self.pace.seconds_for(self.schedule.num_steps - self.step),
            memory_bytes=memory_bytes(self.device),
        )

    # ---- the end ----

    def _finish(self) -> None:
        """The last line, the weights, the evaluation: what other processes need not wait for."""
        weights = self._weights()
        if not self.world.leads:
            return
        step = self.step
        if self._chooses:
            step = int(self.best["step"])
            if step != self.step:
                weights = checkpoint.load(self.folder.checkpoints / f"step-{step}").model
        if self.window:  # steps after the last full line; the checkpoint keeps them, because --max-steps may grow
            self._log({})
        self.folder.sync()
        write_atomically(self.folder.path / "model.safetensors", safetensors.torch.save(weights))
        result = self._evaluate(weights, step) if self.config.evaluate else ""
        print(f"{result}\nrun       {self.folder.path}".lstrip(), flush=True)
        self._write_status("finished", exit_code=0, evaluated=self.config.evaluate, result=result)

    @property
    def _chooses(self) -> bool:
        """Whether the result is an epoch's that was chosen; not where none has ended."""
        return self.task.keeps_best and bool(self.best)

    def _evaluate(self, weights: dict[str, Tensor], step: int) -> str:
        advice = "The trained model is saved; --no-evaluate leaves the evaluation out."
        with out_of_memory_errors("while evaluating", advice):
            epoch = -(-step // self.schedule.steps_per_epoch)
            return self.task.finish(self.folder, self._whole_model(weights).eval(), epoch, self._chooses)

    def _whole_model(self, weights: dict[str, Tensor]) -> nn.Module:
        """A copy in float32 and in one piece, which the model in training need not be."""
        model = self.task.new_model()
        model.load_state_dict(weights)
        return model.to(self.device)

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
        with contextlib.suppress(DiskError):  # on a full disk the message on stderr has to do
            self._write_status(state, exit_code=exit_code, message=message)

    def _write_status(self, state: str, **more: Any) -> None:
        if not self.world.leads:
            return
        left = self.pace.seconds_for(self.schedule.num_steps - self.step)
        self.folder.write_status(
            state,
            step=self.step,
            num_steps=self.schedule.num_steps,
            checkpoint=self._saved_step,
            seconds_left=round(left) if math.isfinite(left) else None,
            **more,
        )


def _column_means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
