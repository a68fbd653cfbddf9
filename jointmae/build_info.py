"""The fingerprint that ties the compiled module to its sources; used by setup.py, so free of torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def source_hash(root: Path = ROOT) -> str | None:
    """SHA-256 over CMakeLists.txt and all of `csrc/`: names and contents. None where there is no checkout around us."""
    csrc = root / "csrc"
    if not csrc.is_dir():
        return None
    sources = [path for path in csrc.rglob("*") if path.suffix in {".cpp", ".cu", ".h", ".cuh"}]
    digest = hashlib.sha256()
    for path in sorted([root / "CMakeLists.txt", *sources]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
