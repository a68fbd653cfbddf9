"""`python -m jointmae.data COMMAND`: what a data set holds, whether it is sound, and making one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module

from jointmae import cli
from jointmae.errors import UsageError

COMMANDS = {
    "info": "what a set holds: layout, splits, clouds, points, classes, parts, bad files",
    "check": "whether a set is sound and complete, and where to get it",
    "convert": "meshes or clouds, a folder a class or none, into one .h5 file",
    "layouts": "the folder trees that are recognised",
    "cache": "decoded sets that are kept on this disk, and removing them",
}
USAGE = "\n".join(
    ["usage: python -m jointmae.data COMMAND ...", ""]
    + [f"  {name:8s} {what}" for name, what in COMMANDS.items()]
    + ["", "Options of each: python -m jointmae.data COMMAND --help"]
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    command = argv[0]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        advice = f"Did you mean {near[0]}?" if near else f"Did you mean info {command}?"
        raise UsageError(f"there is no command {command!r}, wanted one of {', '.join(COMMANDS)}. {advice}")
    code: int = import_module(f"jointmae.data.commands.{command}").main(argv[1:])
    return code


if __name__ == "__main__":
    cli.run(main)
