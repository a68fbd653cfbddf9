"""The learning rate, step by step, against its definition; and what a user sees meanwhile."""

from __future__ import annotations

import dataclasses
import math
import os
import pty
import random
import subprocess
import sys

import pytest

from jointmae.config import TrainConfig
from jointmae.progress import Pace, Progress, Snapshot, duration
from jointmae.schedule import Schedule


def schedule(**changes) -> Schedule:
    config = TrainConfig(epochs=10, warmup_epochs=2, lr=1e-3, min_lr=1e-5)
    return Schedule(dataclasses.replace(config, **changes), steps_per_epoch=5)


def test_warm_up_is_linear_and_ends_at_the_peak():
    rates = [schedule().lr(step) for step in range(10)]
    assert rates[-1] == pytest.approx(1e-3)
    steps = [b - a for a, b in zip(rates, rates[1:], strict=False)]
    assert rates[0] == pytest.approx(1e-5 + steps[0]) and steps == pytest.approx([steps[0]] * 9)


def test_cosine_from_the_peak_through_the_mean_to_the_lowest():
    chosen = schedule()
    assert chosen.lr(10) == pytest.approx(1e-3)
    assert chosen.lr(30) == pytest.approx((1e-3 + 1e-5) / 2)
    assert chosen.lr(49) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 - math.cos(math.pi / 40)) / 2)
    assert chosen.lr(50) == pytest.approx(1e-5)
    rates = [chosen.lr(step) for step in range(10, 51)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup_epochs", [0, 0.05, 0.3, 0.5, 2.5])
def test_a_warm_up_of_part_of_an_epoch_never_passes_the_peak(warmup_epochs):
    chosen = schedule(warmup_epochs=warmup_epochs)
    rates = [chosen.lr(step) for step in range(50)]
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) <= max(round(5 * warmup_epochs), 0)


def test_max_steps_ends_earlier_and_changes_no_rate():
    whole, stopped = schedule(), schedule(max_steps=20)
    assert (whole.num_steps, stopped.num_steps, schedule(max_steps=99).num_steps) == (50, 20, 50)
    assert [whole.lr(step) for step in range(20)] == [stopped.lr(step) for step in range(20)]


@pytest.mark.parametrize(("epochs", "warmup_epochs"), [(1, 0), (1, 1), (1, 3), (3, 3)])
def test_short_runs_have_rates(epochs, warmup_epochs):
    chosen = schedule(epochs=epochs, warmup_epochs=warmup_epochs)
    assert all(1e-5 <= chosen.lr(step) <= 1e-3 for step in range(chosen.num_steps))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (3723, "1:02:03"), (360_000, "100:00:00")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def snapshot(**changes) -> Snapshot:
    values = dict(epoch=0, num_epochs=3, step=10, num_steps=110)
    values |= dict(
        losses={"L_3D": 0.5, "L_2D": 0.25, "L_3D-2D": 0.125},
        lr=1e-3,
        clouds_per_second=16.0,
        seconds_left=50.0,
        memory_bytes=3 * 2**29,
    )
    return Snapshot(**{**values, **changes})


def test_the_line():
    assert snapshot().line() == (
        "epoch 1/3  step 10/110  L_3D 0.5000  L_2D 0.2500  L_3D-2D 0.1250  lr 1.0e-03  16 clouds/s  1.5 GiB  ETA 0:50"
    )
    assert snapshot(seconds_left=math.inf).line().endswith("ETA ?")


@pytest.mark.parametrize("seed", range(5))
def test_after_a_tenth_of_a_run_its_end_is_known_within_a_tenth(seed):
    """Steps of 0.1 s that vary by half, a long first one, a checkpoint now and then."""
    generator, now, done = random.Random(seed), 0.0, 0.0
    pace, num_steps, told = Pace(lambda: now), 2000, math.inf
    assert pace.seconds_for(num_steps) == math.inf
    for step in range(1, num_steps + 1):
        now += 0.1 * generator.lognormvariate(0, 0.5) + (60 if step == 1 else 0) + (0.5 if step % 50 == 0 else 0)
        pace.step()
        if step == num_steps // 10:
            done, told = now, pace.seconds_for(num_steps - step)
    assert told == pytest.approx(now - done, rel=0.1)
    assert pace.seconds_for(0) == 0


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Progress() as progress:
        for step in range(1, 6):
            progress.show(snapshot(step=step), force=step in (1, 5))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines] == ["1/110", "5/110"]  # the others came within five seconds
    assert "\x1b" not in "".join(lines)


LIVE = """
from jointmae.progress import Progress
from tests.test_schedule import snapshot
try:
    with Progress() as progress:
        for step in range(1, 6):
            progress.show(snapshot(step=step))
        print("a line in between")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("after")
"""


def on_a_terminal(code: str) -> str:
    """What `code` says on a terminal of 200 columns."""
    reader, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], stdout=terminal, env=environment, check=True, timeout=120)
    os.close(terminal)
    said = b""
    try:
        while chunk := os.read(reader, 65536):
            said += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(reader)
    return said.decode()


def test_one_live_line_on_a_terminal():
    """One line that is drawn again, and the cursor is there again at the end."""
    text = on_a_terminal(LIVE)
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert text.index(hide) < text.rindex("step 5/110") < text.rindex(show) < text.index("after")
    assert "a line in between" in text


COST = """
import time
from jointmae.progress import Progress
from tests.test_schedule import snapshot
with Progress() as progress:
    progress.show(snapshot(step=0), force=True)  # loads what it needs
    begin, cost = time.monotonic(), 0.0
    for step in range(40):
        before = time.thread_time()
        progress.show(snapshot(step=step))
        cost += time.thread_time() - before
        time.sleep(0.05)
    share = cost / (time.monotonic() - begin)
print(f"share {share:.5f}")
"""


def test_the_live_line_takes_less_than_a_hundredth_of_the_time():
    """Of 40 steps of 0.05 s."""
    assert float(on_a_terminal(COST).rsplit("share ", 1)[1].split()[0]) < 0.01
