"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str, ending: str = "s") -> str:
    """As in "1 cloud", "1,200 clouds", "2 processes"."""
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def printable(line: str) -> str:
    """The line without what could steer a terminal: names and texts are a file's own."""
    return "".join(c if c.isprintable() else "?" for c in line)


def spoken(score: str) -> str:
    """The name of a score: "instance_miou" is "instance mIoU"."""
    return score.replace("_", " ").replace("miou", "mIoU")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with columns of even width."""
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
