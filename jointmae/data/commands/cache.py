"""`python -m jointmae.data cache`: decoded sets that are kept on this disk, and removing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jointmae import cli
from jointmae.files import disk_errors

DESCRIPTION = "List the decoded sets in $JOINTMAE_CACHE (~/.cache/jointmae without it), or remove them."


@dataclass(frozen=True)
class CacheConfig:
    """What to do with them."""

    clear: bool = False
    """Remove all of them; they are made again when needed."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    config = cli.parse(CacheConfig(), argv, "jointmae.data cache", DESCRIPTION)
    from jointmae.data import cache

    place = cache.folder()
    if place is None:
        print("nothing is kept: JOINTMAE_CACHE is off, or nothing can be written there")
        return 0
    total = 0
    for entry in cache.entries(place):
        size = sum(file.stat().st_size for file in entry.iterdir())
        total += size
        print(f"{size / 2**20:8,.1f} MiB  {entry.name}")
        if config.clear:
            with disk_errors(entry):
                cache.remove(entry)
    print(f"{total / 2**20:8,.1f} MiB  {'removed' if config.clear else 'in all'}, {place}")
    return 0
