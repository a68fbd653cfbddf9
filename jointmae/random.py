"""Counter-based randomness: every random choice is a pure function of (seed, epoch, sample id, purpose).

There is no generator and no state to save: a resumed run, and a run on more processes, draws the same numbers because
it asks the same questions. A question is a key, 32 bits in an int64 tensor; its answers are hashes of (key, counter).

All arithmetic is on integers in [0, 2^32) held in int64. Multipliers are below 2^31, so no product reaches 2^63, and
the bits are the same on every device, eager or compiled. The mixer is `lowbias32` of Chris Wellons' hash prospector, a
bijection of 32 bits; so ids below 2^32 have distinct keys within one (seed, purpose, epoch), and the hashes of one key
are distinct, which leaves permutations without ties.

B samples, n items.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LOW_32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: keeps a key of 0 from mapping counter 0 to 0

Word = TypeVar("Word", int, Tensor)


class Purpose(IntEnum):
    """What a number is drawn for. The values are part of every result ever published: add new ones, never renumber."""

    SHUFFLE = 0  # order of the data set in an epoch
    SUBSET = 1  # which points of a cloud are used
    SCALE = 2  # augmentation: scale per axis
    SHIFT = 3  # augmentation: shift per axis
    VIEW = 4  # azimuth and elevation of the camera
    MASK_3D = 5  # hidden 3D tokens
    MASK_2D = 6  # hidden 2D tokens
    DROP_PATH = 7  # residual branches left out
    DROPOUT = 8  # features left out
    INIT = 9  # initial weights
    ROTATE = 10  # augmentation: turn about the up axis
    VALIDATION = 11  # which training clouds are held out
    VOTE = 12  # augmented copies of test clouds
    EPISODE = 13  # classes and clouds of a few-shot run


def keys(seed: int, epoch: int | Tensor, sample_ids: Tensor, purpose: Purpose) -> Tensor:
    """One key per sample: `sample_ids` int64 [B] -> int64 [B] in [0, 2^32).

    `seed` is any Python int (its low 64 bits count); `epoch` an int below 2^63 or an int64 tensor, [] or [B]. In a
    compiled step give the epoch as a tensor: an int becomes part of the graph. Raises TypeError unless ids are int64.
    """
    if sample_ids.dtype != torch.int64:
        raise TypeError(f"keys: sample_ids must be int64, got {sample_ids.dtype}")
    stream = fold(fold(0, seed), int(purpose))
    if not isinstance(epoch, Tensor):  # folded here: taking a number to a GPU would wait for it
        return fold(torch.full_like(sample_ids, fold(stream, epoch)), sample_ids)  # [B]
    epochs = epoch.to(sample_ids.device, torch.int64)  # [] or [B]
    return fold(fold(torch.full_like(sample_ids, stream), epochs), sample_ids)  # [B]


def fold(key: Word, number: int | Word) -> Word:
    """A new key for `number` (a layer, a view, a half of a pair), all 64 bits of it; elementwise on tensors.

    With one key, numbers below 2^32 give distinct keys.
    """
    low, high = number & _LOW_32, (number >> 32) & _LOW_32
    return _mix(((_mix(key ^ high) + _GOLDEN) & _LOW_32) ^ low)


def hashes(keys: Tensor, n: int) -> Tensor:
    """The first `n` hashes of each key: int64 [B] -> int64 [B, n] in [0, 2^32), distinct within a row."""
    counters = torch.arange(n, dtype=torch.int64, device=keys.device)  # [n]
    key = keys.unsqueeze(-1)  # [B, 1]
    return _mix((_mix(counters ^ key) + key + _GOLDEN) & _LOW_32)  # [B, n]


def uniform(keys: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: int64 [B] -> float32 [B, *shape]."""
    top_24 = hashes(keys, math.prod(shape)) >> 8  # [B, prod(shape)]
    return (top_24.to(torch.float32) * 2.0**-24).reshape(*keys.shape, *shape)  # [B, *shape]


def permutation(keys: Tensor, n: int) -> Tensor:
    """A random order of 0..n-1 per key: int64 [B] -> int64 [B, n]. Its first m entries are a random subset of m."""
    return torch.argsort(hashes(keys, n), dim=-1, stable=True)  # [B, n]


def subset(keys: Tensor, n: int, m: int) -> Tensor:
    """Random m of 0..n-1 in random order: int64 [B] -> int64 [B, m], the first m entries of `permutation`.

    On a CPU in NumPy, which hashes in 32 bits, sorts with the vector units, and only what is asked for.
    """
    if keys.device.type != "cpu" or torch.compiler.is_compiling():
        return permutation(keys, n)[:, :m]  # [B, m]
    ranks = _numpy_hashes(keys, n).astype(np.uint64)  # [B, n]
    ranks <<= np.uint64(32)
    ranks |= np.arange(n, dtype=np.uint64)  # what is sorted carries its place
    if 0 < m < n:
        ranks.partition(m - 1, axis=-1)
    chosen = ranks[:, :m].copy()  # [B, m]
    chosen.sort(axis=-1)
    chosen &= np.uint64(_LOW_32)
    return torch.from_numpy(chosen.view(np.int64))  # [B, m]


def epoch_order(seed: int, epoch: int | Tensor, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which an epoch visits a data set of `n` samples: int64 [n]."""
    key = keys(seed, epoch, torch.zeros(1, dtype=torch.int64, device=device), Purpose.SHUFFLE)  # [1]
    return permutation(key, n)[0]  # [n]


def _mix(x: Word) -> Word:
    """A bijection of [0, 2^32) in which each input bit changes each output bit with probability near 1/2."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32
    return x ^ (x >> 15)


def _numpy_hashes(keys: Tensor, n: int) -> NDArray[np.uint32]:
    """`hashes` on a CPU: int64 [B] -> uint32 [B, n]; arithmetic of 32 bits wraps by itself."""
    key = keys.numpy().astype(np.uint32)[:, None]  # [B, 1]
    x = _numpy_mix(np.arange(n, dtype=np.uint32) ^ key)  # [B, n]
    x += key + np.uint32(_GOLDEN)
    return _numpy_mix(x)  # [B, n]


def _numpy_mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`_mix`, in place."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x21F0AAAD)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x735A2D97)
    x ^= x >> np.uint32(15)
    return x
