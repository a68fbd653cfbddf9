"""From argv to a config, and from an exception to a short message and an exit code. Free of torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from jointmae import process
from jointmae.errors import DiskError, JointMAEError, UsageError

Config = TypeVar("Config")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main(argv)` and exits with its code; our errors become one short message on stderr."""
    process.prepare()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except JointMAEError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader has left, as in `| head`
        _drop_output()
        code = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        _drop_output()
        print(f"error: cannot write what is said: {error.strerror}. Send the output to another place.", file=sys.stderr)
        code = DiskError.exit_code
    sys.exit(code)


def _drop_output() -> None:
    """What Python still holds for a stdout that takes no more goes nowhere: the next attempt would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(default: Config, argv: Sequence[str], command: str, description: str) -> Config:
    """`default`, a dataclass, with the options of `argv` put in. `--help` prints the options and exits.

    Raises UsageError for an unknown option or a value of the wrong kind.
    """
    import tyro

    argv = list(argv)
    if not {"-h", "--help"} & set(argv):
        _require_known_options(default, argv, command)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config: Config = tyro.cli(
                type(default),
                default=default,
                args=argv,
                prog=f"python -m {command}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
            )
            return config
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_plain(complaint.getvalue())}\nOptions: python -m {command} --help") from None


def option(argv: Sequence[str], name: str, default: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE` in argv, the last one if several, before the rest is parsed."""
    value = default
    for i, word in enumerate(argv):
        if word == f"--{name}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif word.startswith(f"--{name}="):
            value = word.split("=", 1)[1]
    return value


def _option_names(config: object) -> list[str]:
    names: list[str] = []
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            names += _option_names(value)
            continue
        flag = f.name.replace("_", "-")
        names += [f"--{flag}"] + ([f"--no-{flag}"] if isinstance(value, bool) else [])
    return names


def _require_known_options(config: object, argv: Sequence[str], command: str) -> None:
    known = _option_names(config)
    for word in argv:
        name = word.split("=", 1)[0].replace("_", "-")
        if not name.startswith("--") or name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown option {name}.{hint}\nOptions: python -m {command} --help")


def _plain(text: str) -> str:
    """What tyro says in its box, without colours, frame, title and help text, as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", text)
    _title, *lines = (line.strip() for line in text.splitlines() if line.strip())
    said = list(itertools.takewhile(lambda line: set(line) != {"─"}, lines))
    message = " ".join(said).removeprefix("Error parsing ")
    message = message.replace(": invalid literal for int() with base 10:", " must be an integer, got")
    message = message.replace(": could not convert string to float:", " must be a number, got")
    option, stray = "Unrecognized options:", message.removeprefix("Unrecognized options:").strip()
    if message.startswith(option):
        return f"unexpected argument: {stray or repr('')}. Options start with --, as in --data FILE.h5"
    return message
