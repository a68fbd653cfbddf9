"""Files of one cloud or mesh with bytes changed, added, taken away: always a Shape or a DataError, and soon."""

from __future__ import annotations

import copy
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

from jointmae.data.shapes import read_shape
from jointmae.errors import DataError
from tests.shape_files import EXAMPLES, glb, glb_scene

LIMIT_SECONDS = 10


class TooSlowError(BaseException):
    """No `except Exception` on the way may catch it."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(_: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damage(data: bytearray, generator: random.Random) -> None:
    """One fault of five kinds at a random place."""
    at, kind = generator.randrange(len(data) + 1), generator.randrange(5)
    length = generator.choice((1, 1, 1, 2, 4, 8, 50))
    new = generator.choice((generator.randbytes(length), b"\0" * length, b"\xff" * length, b"9" * length, b"-", b"[{"))
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = new
    elif kind == 3:
        data[at : at + len(new)] = new
    elif at < len(data):
        data[at] ^= 1 << generator.randrange(8)


def read_or_refuse(name: str, data: bytes) -> bool:
    """Whether it was read; anything but a sound Shape or a DataError that names the file fails."""
    try:
        shape = read_shape(name, data)
    except DataError as error:
        assert error.file == name and error.what
        return False
    assert shape.points.ndim == 2 and shape.points.shape[1] == 3 and len(shape.points) >= 1
    assert shape.points.dtype in (np.float32, np.float64) and shape.points.flags.c_contiguous
    if shape.faces is not None:
        assert shape.faces.dtype == np.int64 and shape.faces.ndim == 2 and shape.faces.shape[1] == 3
        assert shape.faces.size > 0 and shape.faces.min() >= 0 and shape.faces.max() < len(shape.points)
    return True


def damaged_bytes(name: str, generator: random.Random) -> bytes:
    data = bytearray(EXAMPLES[name])
    for _ in range(generator.choice((1, 1, 2, 4))):
        damage(data, generator)
    return bytes(data)


ODD = (None, True, -1, 0, 1, 2, 4, 17, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), "", "VEC3", [], [0], [[]], {})


def damaged_scene(name: str, generator: random.Random) -> bytes:
    """Sound JSON with some values replaced or left out."""
    scene, buffer = glb_scene()
    for _ in range(generator.choice((1, 1, 2, 4))):
        places = list(walk(scene))
        inside, key = generator.choice(places)
        if generator.random() < 0.2:
            del inside[key]
        else:
            inside[key] = copy.deepcopy(generator.choice((*ODD, *(of[k] for of, k in places))))
    return glb(scene, buffer)


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from walk(value[key])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "variant"), [*((name, damaged_bytes) for name in EXAMPLES), ("pyramid.glb", damaged_scene)]
)
def test_a_damaged_file_is_read_or_refused(
    name: str, variant: Callable[[str, random.Random], bytes], release: bool
) -> None:
    """500 variants of each file, 1,000,000 with --release."""
    generator, count, num_read, slowest = random.Random(name), 1_000_000 if release else 500, 0, 0.0
    assert read_or_refuse(name, EXAMPLES[name])
    begin = time.perf_counter()
    for i in range(count):
        data = variant(name, generator)
        start = time.perf_counter()
        try:
            with time_limit():
                num_read += read_or_refuse(name, data)
        except BaseException:
            print(f"{name}, variant {i}: {data!r}")
            raise
        slowest = max(slowest, time.perf_counter() - start)
    seconds = time.perf_counter() - begin
    summary = f"{num_read:,} read, {count - num_read:,} refused, {seconds:.1f} s, slowest {slowest * 1000:.1f} ms"
    print(f"{name}, {variant.__name__}: {count:,} variants, {summary}")
