"""What a command can die of, and the exit code each has. Messages say what, where, got, wanted, what to do."""

from __future__ import annotations

from pathlib import Path


class JointMAEError(Exception):
    """The base of all errors below; `exit_code` is what the command returns to the shell."""

    exit_code = 1


class UsageError(JointMAEError):
    """A command that cannot be meant: an unknown flag, preset or value, or another config in the same run folder."""

    exit_code = 2


class DataError(JointMAEError):
    """A file that cannot be used as data: which file, which item in it, and what is wrong with it."""

    exit_code = 3

    def __init__(self, file: str | Path, item: str, what: str) -> None:
        self.file, self.item, self.what = str(file), item, what
        super().__init__(f"{file}: {item}: {what}" if item else f"{file}: {what}")


class CheckpointError(JointMAEError):
    """A checkpoint or a run's folder that is missing, damaged, or of another model or version."""

    exit_code = 4


class NonFiniteError(JointMAEError):
    """A loss, gradient or prediction that is NaN or infinite; the optimizer has not stepped."""

    exit_code = 5


class OutOfMemoryError(JointMAEError):
    """Memory has run out: while reading data, building the model, in a step, or while evaluating."""

    exit_code = 6


class WorkerError(JointMAEError):
    """Of several processes, another one has ended, fallen silent or not come, or torchrun's store is gone."""

    exit_code = 7


class DiskError(JointMAEError):
    """The system refuses to write what a command writes, or to read a checkpoint."""

    exit_code = 74
