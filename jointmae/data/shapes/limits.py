"""How large one file of one cloud or mesh may be."""

from __future__ import annotations

MAX_FILE_BYTES = 2**31
"""A file is held in memory as a whole; the largest meshes and scans of the data sets read here have some 100 MB."""

MAX_POINTS = 100_000_000
"""2.4 GB as float64. A tile of an airborne scan has some 10 million points, a cloud for training some thousand."""
