"""`python -m jointmae.data convert SRC [SRC ...] OUT.h5`: folders or archives of meshes and clouds as one .h5 file."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jointmae import cli
from jointmae.data.conversion import BadFiles, Converted, convert
from jointmae.data.convert_work import Options, Plan
from jointmae.data.layouts.layout import SPLITS, UP_AXES, BadFile
from jointmae.data.resample import is_test
from jointmae.data.tree import Entry, Tree, classes_of, find_shapes, natural_key
from jointmae.errors import DiskError, UsageError
from jointmae.progress import duration
from jointmae.signals import Stopped
from jointmae.text import counted, printable

DESCRIPTION = """Meshes and clouds of a folder or a .zip archive, one file each, as one .h5 file that every command
takes as --data. Folders name classes and splits: CLASS/FILE, train/CLASS/FILE or CLASS/train/FILE; of several SRC
without classes each is one. Meshes are sampled on their surface, clouds brought to --num-points, all moved and scaled
into the unit sphere. The same command goes on where it was ended, and ends in the same bytes with any number of
workers."""

_DTYPES = ("float32", "float16")
_MAX_TEXT_BYTES = 65_536
_SHOWN = 100


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted, and how."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC [SRC ...] OUT.h5")] = ()
    """Folders, .zip or .sh3f archives, and the file to write."""
    num_points: int = 2048
    """Points of every cloud: of more a random subset, of fewer all, repeated cyclically; in random order."""
    dtype: str = "float32"
    """float32, or float16: half the size, coordinates to 1/2048."""
    up_axis: str = "+y"
    """What points up: +x, -x, +y, -y, +z or -z. Nothing is turned."""
    source: str = ""
    """Where the shapes come from; kept in the file."""
    licence: str = ""
    """What may be done with them; kept in the file."""
    test_fraction: float = 0.0
    """Part of the files that become the test split, chosen by their names, where the folders name no splits."""
    seed: int = 0
    """Seed of the points that are sampled or chosen; with a file's name it decides them."""
    workers: int = 0
    """Processes that read files (0: as many as there are cores)."""
    skip_bad: bool = False
    """Leave out files that cannot be read; their names are kept in the file."""
    overwrite: bool = False
    """Replace OUT.h5 if it is there."""
    restart: bool = False
    """Begin again where OUT.h5.partial holds an unfinished conversion of another kind."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, or 128 and the number of the signal that ended it."""
    config = cli.parse(ConvertConfig(), _joined_axis(argv), "jointmae.data convert", DESCRIPTION)
    require_valid(config)
    *sources, out = map(Path, config.paths)
    plan = make_plan([find_shapes(path) for path in sources], config)
    begin = time.monotonic()
    try:
        converted = convert(out, plan, config.workers, config.skip_bad, config.restart)
    except BadFiles as error:
        list_bad(error.bad_files)
        raise
    except Stopped as stop:
        print(f"stopped by {stop.name}; the same command goes on from here, what is done is in {out}.partial")
        return stop.exit_code
    describe(out, plan, converted, time.monotonic() - begin)
    return 0


def _joined_axis(argv: Sequence[str]) -> list[str]:
    """`--up-axis -z` as `--up-axis=-z`: for a parser of options -z is another option."""
    words = list(argv)
    for i in range(len(words) - 1, 0, -1):
        if words[i] in UP_AXES and words[i - 1] in ("--up-axis", "--up_axis"):
            words[i - 1 : i + 1] = [f"--up-axis={words[i]}"]
    return words


def require_valid(config: ConvertConfig) -> None:
    """Raises UsageError for an option that cannot be meant, DiskError if OUT has nowhere to go."""
    if len(config.paths) < 2:
        raise UsageError("SRC and OUT.h5 are wanted, as in: python -m jointmae.data convert meshes/ meshes.h5")
    for option, value, wanted, holds in (
        ("--num-points", config.num_points, "between 1 and 1,000,000", 1 <= config.num_points <= 1_000_000),
        ("--dtype", config.dtype, " or ".join(_DTYPES), config.dtype in _DTYPES),
        ("--up-axis", config.up_axis, f"one of {', '.join(UP_AXES)}", config.up_axis in UP_AXES),
        ("--test-fraction", config.test_fraction, "at least 0 and below 1", 0 <= config.test_fraction < 1),
        ("--seed", config.seed, "at least 0 and below 2^63", 0 <= config.seed < 2**63),
        ("--workers", config.workers, "at least 0 (0: as many as there are cores)", config.workers >= 0),
    ):
        if not holds:
            raise UsageError(f"{option} must be {wanted}, got {value if value != '' else 'nothing'}")
    for option, text in (("--source", config.source), ("--licence", config.licence)):
        if "\0" in text or len(text.encode(errors="replace")) > _MAX_TEXT_BYTES or not _is_utf8(text):
            raise UsageError(f"{option} must be UTF-8 text of at most {_MAX_TEXT_BYTES:,} bytes")
    _require_out(Path(config.paths[-1]), config.overwrite)


def _require_out(out: Path, overwrite: bool) -> None:
    if out.suffix not in (".h5", ".hdf5"):
        raise UsageError(f"the last path is what is written, and must end in .h5, got {out}")
    if not out.parent.is_dir():
        raise DiskError(f"{out} cannot be written: there is no folder {out.parent}: make it first")
    if out.exists() and not (overwrite and out.is_file()):
        what = "give --overwrite to replace it, or choose another OUT" if out.is_file() else "choose another OUT"
        raise UsageError(f"{out} exists already: {what}")


def _is_utf8(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def make_plan(trees: Sequence[Tree], config: ConvertConfig) -> Plan:
    """One list of files and classes from all sources; of several, names begin with that of their folder or archive."""
    if len(trees) > 1 and not any(tree.classes or tree.is_file for tree in trees):  # as the shell makes of meshes/*
        trees = [_as_class(tree) for tree in trees]
        print(printable(f"each source is a class: {', '.join(tree.classes[0] for tree in trees)}"))
    entries = [entry for tree in trees for entry in tree.entries]
    if len(trees) > 1:
        titles = [tree.path.resolve().name for tree in trees]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise UsageError(f"two sources are called {twice[0]}: rename one, as names begin with that of the source")
        entries = [
            dataclasses.replace(entry, name=title if tree.is_file else f"{title}/{entry.name}")
            for title, tree in zip(titles, trees, strict=True)
            for entry in tree.entries
        ]
    for tree in trees:
        if tree.passed_over:
            print(f"{tree.path}: {printable(tree.describe_passed_over())}")
    entries = sorted(_with_test_split(entries, config.test_fraction), key=_order)
    options = Options(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Options)})
    return Plan(tuple(entries), classes_of(entries), options)


def _as_class(tree: Tree) -> Tree:
    """All of its shapes in one class, which is called as its folder or archive is."""
    name = tree.path.resolve().name if tree.path.is_dir() else tree.path.stem
    entries = tuple(dataclasses.replace(entry, label=name) for entry in tree.entries)
    return dataclasses.replace(tree, entries=entries, classes=(name,))


def _with_test_split(entries: list[Entry], fraction: float) -> list[Entry]:
    if fraction == 0:
        return entries
    if any(entry.split for entry in entries):
        raise UsageError("--test-fraction is for sources without splits, and the folders name some: leave it out")
    return [dataclasses.replace(e, split="test" if is_test(e.name, fraction) else "train") for e in entries]


def _order(entry: Entry) -> tuple[int, list[tuple[int, int, str]]]:
    return SPLITS.index(entry.split or "train"), natural_key(entry.name)


def list_bad(bad: Sequence[BadFile]) -> None:
    """A line for each file that cannot be read, at most 100."""
    for file in bad[:_SHOWN]:
        print(printable(f"bad: {file.name}: {file.what}"))
    if len(bad) > _SHOWN:
        print(f"bad: and {len(bad) - _SHOWN:,} more")


def describe(out: Path, plan: Plan, converted: Converted, seconds: float) -> None:
    """What was written, in a few lines."""
    list_bad(converted.bad_files)
    clouds = ", ".join(f"{count:,} {split}" for split, count in converted.num_clouds.items())
    bad = f", {counted(len(converted.bad_files), 'bad file')} left out" if converted.bad_files else ""
    size = f"{os.path.getsize(out) / 2**20:.1f} MiB in {duration(seconds)}"
    points, classes = counted(plan.options.num_points, "point"), counted(len(plan.classes), "class", "es")
    print(f"{out}: {clouds} clouds x {points}, {classes}{bad}; {size}")
    if converted.empty_classes:
        print(printable(f"classes without a cloud, which keep their places: {', '.join(converted.empty_classes)}"))
