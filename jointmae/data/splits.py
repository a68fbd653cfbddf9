"""What a data set may name: splits and the axis that points up. Beside `layouts`, for what layouts are made of."""

from __future__ import annotations

SPLITS = ("train", "val", "test", "extra")
UP_AXES = ("+x", "-x", "+y", "-y", "+z", "-z")
Names = tuple[str, ...]
