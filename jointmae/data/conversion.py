"""From a list of files to one .h5 file: each read, resampled and kept in blocks, which are joined at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jointmae.data.convert_work import Plan, WorkFolder
from jointmae.data.hdf5_writer import Column, SplitToWrite, write_h5
from jointmae.data.layouts.layout import SPLITS, BadFile
from jointmae.data.reading import Cloud, Request, read_clouds
from jointmae.data.resample import resample, seed_of, to_unit_sphere
from jointmae.data.tree import Entry
from jointmae.errors import DataError
from jointmae.progress import FileProgress
from jointmae.signals import Stopped, StopSignals


@dataclass(frozen=True)
class Converted:
    """What was written."""

    num_clouds: Mapping[str, int]  # of every split that has any
    bad_files: tuple[BadFile, ...]  # those left out
    empty_classes: tuple[str, ...]  # all their files are bad; they keep their place among the classes


def convert(out: Path, plan: Plan, num_workers: int = 0, skip_bad: bool = False, restart: bool = False) -> Converted:
    """Writes `out`; goes on where an earlier call with an equal plan was ended, by whatever, to the same bytes.

    Work is kept in `out`.partial until `out` is there. Files that cannot be read are left out with `skip_bad`.
    Raises DataError naming the first of them otherwise, after all have been tried and without writing `out`; UsageError
    if another plan was begun there (unless `restart`); DiskError; signals.Stopped.
    """
    with StopSignals() as signals, WorkFolder(out.with_name(out.name + ".partial"), plan, restart) as work:
        _do_blocks(work, plan, num_workers, signals)
        bad = tuple(BadFile(entry.name, what) for entry, what in _outcomes(work, plan) if what)
        if bad and not skip_bad:
            raise BadFiles(plan, bad)
        converted = _describe(work, plan, bad)
        if not converted.num_clouds:
            raise DataError(out, "", f"not written: none of the {len(plan.entries):,} files can be read")
        with signals.deferred():  # no handler must raise inside of HDF5
            splits = {split: _split(work, plan, split, signals) for split in converted.num_clouds}
            write_h5(out, splits, _texts(plan, bad))
            work.remove()
    return converted


class BadFiles(DataError):
    """Files that cannot be read: the first one in the message, all of them in `bad_files`."""

    def __init__(self, plan: Plan, bad: tuple[BadFile, ...]) -> None:
        """`bad` are some of the files of `plan`, at least one."""
        self.bad_files = bad
        first = next(entry for entry in plan.entries if entry.name == bad[0].name)
        count = f"{len(bad):,} of {len(plan.entries):,} files cannot be read, nothing was written"
        advice = "repair them, or give --skip-bad to leave them out"
        super().__init__(first.path, first.member, f"{bad[0].what} ({count}): {advice}")


def _do_blocks(work: WorkFolder, plan: Plan, num_workers: int, signals: StopSignals) -> None:
    """Reads the files of all blocks that are not finished, and keeps each block."""
    todo = [number for number in range(plan.num_blocks) if number not in work.finished]
    requests = [_request(plan, entry) for number in todo for entry in plan.block(number)]
    num_bad = sum(len(block.bad) for block in work.finished.values())
    if not todo:
        return
    clouds = read_clouds(requests, num_workers)
    assert isinstance(clouds, Generator)  # closed, it ends its processes
    with (
        contextlib.closing(clouds),
        FileProgress(len(plan.entries), len(plan.entries) - len(requests), num_bad) as progress,
    ):
        for number in todo:
            points: list[NDArray[np.floating]] = []
            bad: dict[int, str] = {}
            for place, entry in enumerate(plan.block(number)):
                made = _make(plan, entry, next(clouds))
                if isinstance(made, str):
                    bad[place] = made
                else:
                    points.append(made)
                progress.advance(bad=isinstance(made, str))
            shape = (len(points), plan.options.num_points, 3)
            with signals.deferred():
                work.write(number, np.array(points, plan.options.dtype).reshape(shape), bad)


def _request(plan: Plan, entry: Entry) -> Request:
    seed = seed_of(plan.options.seed, entry.name)
    return Request(entry.path, entry.member, entry.name, plan.options.num_points, seed)


def _make(plan: Plan, entry: Entry, cloud: Cloud | DataError) -> NDArray[np.floating] | str:
    """The points [num_points, 3] of one file, or what is wrong with it."""
    if isinstance(cloud, DataError):
        return f"{cloud.item}: {cloud.what}" if cloud.item not in ("", entry.name, entry.member) else cloud.what
    finite = np.isfinite(cloud.points).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        return f"row {row} is {cloud.points[row].tolist()}, wanted finite numbers: repair it"
    options = plan.options
    points = cloud.points.astype(np.float64)
    if not cloud.is_mesh:
        points = resample(points, options.num_points, seed_of(options.seed, entry.name))
    return to_unit_sphere(points).astype(options.dtype)


def _outcomes(work: WorkFolder, plan: Plan) -> Iterator[tuple[Entry, str]]:
    """Every file with what is wrong with it, "" for nothing."""
    for number in range(plan.num_blocks):
        bad = work.finished[number].bad
        yield from ((entry, bad.get(place, "")) for place, entry in enumerate(plan.block(number)))


def _describe(work: WorkFolder, plan: Plan, bad: tuple[BadFile, ...]) -> Converted:
    good = [entry for entry, what in _outcomes(work, plan) if not what]
    counts = {split: sum((entry.split or "train") == split for entry in good) for split in SPLITS}
    filled = {entry.label for entry in good}
    empty = tuple(name for name in plan.classes if name not in filled)
    return Converted({split: count for split, count in counts.items() if count}, bad, empty)


def _split(work: WorkFolder, plan: Plan, split: str, signals: StopSignals) -> SplitToWrite:
    good = [entry for entry, what in _outcomes(work, plan) if not what and (entry.split or "train") == split]
    columns: dict[str, Column] = {"name": tuple(entry.name for entry in good)}
    if plan.classes:
        places = {name: i for i, name in enumerate(plan.classes)}
        columns["label"] = np.array([places.get(entry.label, -1) for entry in good], np.int32)
    shape = (len(good), plan.options.num_points, 3)
    return SplitToWrite(shape, np.dtype(plan.options.dtype), _points_of(work, plan, split, signals), columns)


def _points_of(work: WorkFolder, plan: Plan, split: str, signals: StopSignals) -> Iterator[NDArray[np.floating]]:
    """The clouds of a split, those of one block at a time. Raises Stopped between two of them."""
    for number in range(plan.num_blocks):
        if signals.wanted:
            raise Stopped(signals.wanted)
        bad = work.finished[number].bad
        entries = [entry for place, entry in enumerate(plan.block(number)) if place not in bad]
        chosen = np.array([(entry.split or "train") == split for entry in entries], bool)
        if chosen.any():
            yield work.points(number)[chosen]


def _texts(plan: Plan, bad: tuple[BadFile, ...]) -> dict[str, tuple[str, ...]]:
    options = plan.options
    return {
        "classes": plan.classes,
        "up_axis": (options.up_axis,),
        "source": (options.source,) if options.source else (),
        "licence": (options.licence,) if options.licence else (),
        "bad_files": tuple(file.name for file in bad),
    }
