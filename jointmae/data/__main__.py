"""`python -m jointmae.data PATH`: print what a data file holds, or what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jointmae.errors import JointMAEError


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per split; the exit code is 0, 2 for wrong usage, 3 for data that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m jointmae.data", description="Print what a data file holds.")
    parser.add_argument("path", nargs="?", default="furniture", help='an .h5 file, or "furniture" (default)')
    path = parser.parse_args(arguments).path
    try:
        for line in describe(path):
            print("".join(c if c.isprintable() else "?" for c in line))  # a file's text must not steer the terminal
    except JointMAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def describe(path: str) -> list[str]:
    """The lines that `main` prints."""
    from jointmae.data import furniture
    from jointmae.data.formats import read_h5

    contents = read_h5(furniture.path() if path == furniture.NAME else path)
    lines = [f"{path}: {len(contents.classes)} classes, up {contents.up_axis}"]
    for name, split in contents.splits.items():
        num_clouds, num_points, _ = split.points.shape
        parts = "" if split.parts is None else f", {len(contents.part_names)} parts"
        labelled = int((split.labels >= 0).sum())
        lines.append(f"  {name}: {num_clouds:,} clouds x {num_points:,} points, {labelled:,} labelled{parts}")
    lines += [f"  classes: {', '.join(contents.classes)}"] if contents.classes else []
    lines += [f"  source: {contents.source}"] if contents.source else []
    return lines + ([f"  licence: {contents.licence}"] if contents.licence else [])


if __name__ == "__main__":
    sys.exit(main())
