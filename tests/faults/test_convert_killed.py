"""A conversion killed at any of its writes, or whose work was damaged: the next one ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from jointmae.data import convert_work
from jointmae.data.conversion import convert
from jointmae.data.convert_work import Options, Plan
from jointmae.data.tree import find_shapes
from jointmae.errors import UsageError
from tests.shape_files import EXAMPLES

BLOCK = 2


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Seven files of two classes, one of them bad, in blocks of two."""
    monkeypatch.setattr(convert_work, "BLOCK", BLOCK)
    for i, name in enumerate(("pyramid.npy", "pyramid.off", "pyramid.obj") * 2):
        file = tmp_path / "set" / ("a" if i < 3 else "b") / f"{i}{Path(name).suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(EXAMPLES[name])
    (tmp_path / "set/b/bad.off").write_bytes(b"OFF 1")
    tree = find_shapes(tmp_path / "set")
    return Plan(tree.entries, tree.classes, Options(num_points=16))


def forked(out: Path, plan: Plan, kill_at: int) -> int:
    """The conversion in a process of its own, killed when it has written to the disk so often; its exit code."""
    pid = os.fork()
    if pid == 0:
        _convert_and_exit(out, plan, kill_at)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _convert_and_exit(out: Path, plan: Plan, kill_at: int) -> NoReturn:
    synced, written = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal written
        synced(handle)
        written += 1
        if written == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        convert(out, plan, num_workers=1, skip_bad=True)
        code = 0
    finally:
        os._exit(code)


def test_killed_at_any_write(tmp_path: Path, plan: Plan, release: bool) -> None:
    """At five of the writes, at all with --release."""
    whole = tmp_path / "whole.h5"
    convert(whole, plan, num_workers=1, skip_bad=True)
    num_writes = 2 + 3 * plan.num_blocks + 2  # the plan, blocks, the file; each with its folder, a block with its line
    for kill_at in range(1, num_writes + 1) if release else (1, 4, 5, 9, num_writes):
        out = tmp_path / f"{kill_at}.h5"
        assert forked(out, plan, kill_at) == -signal.SIGKILL, kill_at
        assert out.exists() == (kill_at == num_writes)  # and then the work is not removed yet
        converted = convert(out, plan, num_workers=1, skip_bad=True)
        assert out.read_bytes() == whole.read_bytes() and [bad.name for bad in converted.bad_files] == ["b/bad.off"]
        assert sorted(path.name for path in tmp_path.glob(f"{kill_at}.*")) == [out.name]
    assert forked(tmp_path / "all.h5", plan, num_writes + 1) == 0


def test_killed_again_and_again(tmp_path: Path, plan: Plan) -> None:
    """Each process gets one block further."""
    convert(tmp_path / "whole.h5", plan, num_workers=1, skip_bad=True)
    out = tmp_path / "set.h5"
    codes = [forked(out, plan, 5 if i == 0 else 3) for i in range(plan.num_blocks + 1)]
    assert codes == [-signal.SIGKILL] * plan.num_blocks + [0]
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_damaged_work_is_done_again_or_refused(tmp_path: Path, plan: Plan, release: bool) -> None:
    """8 times, 500 with --release: a byte changed, a file cut short or gone."""
    convert(tmp_path / "whole.h5", plan, num_workers=1, skip_bad=True)
    kept, out = tmp_path / "kept", tmp_path / "set.h5"
    assert forked(out, plan, 2 + 3 * plan.num_blocks) == -signal.SIGKILL  # all blocks are done
    work = tmp_path / "set.h5.partial"
    work.rename(kept)
    generator = random.Random(0)
    for _ in range(500 if release else 8):
        shutil.copytree(kept, work)
        file = generator.choice([path for path in sorted(work.iterdir()) if path.stat().st_size])
        data = bytearray(file.read_bytes())
        place = generator.randrange(len(data))
        damage = generator.randrange(4)
        if damage == 0:
            data[place] ^= 1 << generator.randrange(8)
        elif damage == 1:
            del data[place:]
        elif damage == 2:
            data[place:] = bytes(len(data) - place)  # as a power cut can leave it
        file.unlink() if damage == 3 else file.write_bytes(data)
        try:
            convert(out, plan, num_workers=1, skip_bad=True)
        except UsageError as error:
            assert file.name == "plan.json" and "--restart" in str(error)
            convert(out, plan, num_workers=1, skip_bad=True, restart=True)
        assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes() and not work.exists()
        out.unlink()
