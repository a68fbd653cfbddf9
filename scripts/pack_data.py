#!/usr/bin/env python3
"""Copies points and labels of as many clouds of .h5 files as fit into so many bytes, evenly spaced in each split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np


def pack(source: Path, target: Path, share: float) -> int:
    """Writes `share` of the clouds of each split; returns the size of the file."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        new.attrs["packed"] = f"{share:.3f} of the clouds of {source.name}"
        for split in old:
            num_clouds = len(old[split]["points"])
            chosen = np.unique(np.linspace(0, num_clouds - 1, max(1, int(share * num_clouds))).astype(int))
            for name in ("points", "label"):
                if name in old[split]:
                    values = old[split][name][:][chosen]
                    new.create_dataset(f"{split}/{name}", data=values, chunks=True, compression=9, shuffle=True)
    return target.stat().st_size


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", type=Path, nargs="+", help=".h5 files, or folders of them")
    args = parser.parse_args()
    files = [file for path in args.sources for file in (sorted(path.glob("*.h5")) if path.is_dir() else [path])]
    if not files:
        parser.error(f"no .h5 file in {', '.join(map(str, args.sources))}")
    share = min(1.0, args.max_bytes / sum(file.stat().st_size for file in files))
    while share > 0.001:  # a file's size is not quite in proportion to its clouds
        size = sum(pack(file, args.target / file.name, share) for file in files)
        if size <= args.max_bytes:
            print(f"pack_data: {share:.1%} of the clouds of {len(files)} files, {size / 2**20:.1f} MiB")
            return 0
        share *= 0.98 * args.max_bytes / size
    print(f"pack_data: nothing fits into {args.max_bytes} bytes", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
