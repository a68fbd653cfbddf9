"""The rows of each comparison as options of `jointmae.train`, beside what the paper says of them. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    cells: tuple[str, ...]  # one for each column, as the paper has them
    options: tuple[str, ...] = ()  # of jointmae.train: what makes it this row
    paper: float | None = None  # accuracy on ModelNet40 in percent
    is_trained: bool = True


@dataclass(frozen=True)
class Table:
    """Rows, one of which the others are compared with."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    reference: int  # the number of that row


def _attention(scope_2d_to_3d: str, scope_3d_to_2d: str, paper: float) -> Row:
    options = ("--attention-2d-to-3d", scope_2d_to_3d, "--attention-3d-to-2d", scope_3d_to_2d)
    return Row((scope_2d_to_3d.capitalize(), scope_3d_to_2d.capitalize()), options, paper)


def _modules(hierarchy_2d: bool, hierarchy_3d: bool, shared_decoder: bool, paper: float) -> Row:
    parts = {"hierarchy-2d": hierarchy_2d, "hierarchy-3d": hierarchy_3d, "shared-decoder": shared_decoder}
    options = tuple(f"--{name}" if there else f"--no-{name}" for name, there in parts.items())
    return Row((*("yes" if there else "-" for there in parts.values()), "yes"), options, paper)


def _cross_loss(num_views: int, color_render: bool, paper: float) -> Row:
    cells = ("yes" if num_views else "-", str(num_views or "-"), "yes" if color_render else "-")
    render = "--color-render" if color_render else "--no-color-render"
    return Row(cells, ("--cross-views", str(num_views), render), paper)


TABLES = {
    "6": Table(
        "Table 6: local-aligned attention",
        ("2D-3D", "3D-2D"),
        (
            _attention("global", "global", 91.7),
            _attention("local", "global", 91.8),
            _attention("global", "local", 92.0),
            _attention("local", "local", 92.4),
        ),
        reference=3,
    ),
    "7": Table(
        "Table 7: hierarchical embedding modules and joint decoder",
        ("2D embedding", "3D embedding", "modal-shared", "modal-specific"),
        (
            _modules(True, True, True, 92.4),
            _modules(True, False, True, 91.2),
            _modules(False, True, True, 91.4),
            _modules(True, True, False, 91.8),
        ),
        reference=0,
    ),
    "8": Table(
        "Table 8: cross-reconstruction loss",
        ("cross loss", "views", "render"),
        (
            _cross_loss(0, False, 91.1),
            _cross_loss(1, False, 91.6),
            _cross_loss(4, False, 92.4),
            _cross_loss(4, True, 91.9),
        ),
        reference=2,
    ),
    "baselines": Table(
        "Baselines: the same encoder untrained, trained on 3D alone, and jointly",
        ("encoder",),
        (
            Row(("random",), ("--modality", "joint"), is_trained=False),
            Row(("3D only",), ("--modality", "3d"), 91.0),  # Point-MAE, table 1
            Row(("Joint-MAE",), ("--modality", "joint"), 92.4),
        ),
        reference=1,
    ),
}
"""By the name that `--table` takes."""


def own(variants: tuple[str, ...]) -> Table:
    """A table of one's own: the run as it is, and each variant, options in one string: "lr=1e-3 num-neighbors=16,8"."""
    rows = (Row(("as it is",)), *(Row((variant,), tuple(_options(variant))) for variant in variants))
    return Table("Variants", ("options",), rows, reference=0)


def _options(variant: str) -> Iterator[str]:
    for word in variant.split():
        name, equals, values = word.removeprefix("--").partition("=")
        yield f"--{name}"
        yield from values.split(",") if equals else ()
