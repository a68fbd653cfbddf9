"""The embedded data set: 820 clouds of furniture and household objects, so that every command runs without a download.

330 `train` and 84 `test` clouds of 13 classes and 406 unlabelled `extra` ones, 2,048 points each, +y up. They were
sampled from the models of the Debian package sweethome3d-furniture 1.8-1 (CC BY 3.0 and CC0 1.0); their authors are
named in FURNITURE_LICENSE.md beside the file.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jointmae.errors import DataError

NAME = "furniture"
SHA256 = "f26ddce291499ca6f7df67377a5e224a86bb1c2c0288f1f872bfc6a2a6370d99"


def path() -> Path:
    """Where the installed file is. Raises DataError if the installation lacks it."""
    file = Path(str(files("jointmae.data") / "furniture.h5"))
    if not file.is_file():
        raise DataError(file, "", "the embedded data set is missing: install jointmae again")
    return file
