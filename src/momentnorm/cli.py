"""Command line: ``momentnorm COMMAND``, which imports the command that runs and no other."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from .support.arguments import Parser

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command(NamedTuple):
    """A command: the module that has its ``main(argv)``, and its line in ``--help``."""

    module: str
    help: str
    extra: str = ""  # the extra that installs the packages of the module


COMMANDS = {
    "stylize": Command("stylize", "turn photographs into paintings; train new styles", "stylize"),
    "explain": Command("explainer", "show what a layer computes, step by step, on your numbers"),
    "figure": Command("figure", "draw which elements of a feature map share their statistics"),
    "explore": Command("explore", "write a page on which you normalize step by step"),
    "study": Command(
        "studies", "repeat the experiments behind claims about these norms", "studies"
    ),
    "export-check": Command(
        "deployment",
        "compare each norm of an ONNX file with the model that it comes from",
        "export",
    ),
    "doctor": Command("doctor", "say which backend takes which call on this machine, and why"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``momentnorm COMMAND ...``; the exit code."""
    _prepare_streams()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # at exit it would be too late to answer
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has left (`| head`)
        _drop_output()
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        print(f"momentnorm: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return _run_command(argv[0], argv[1:])
    parser = Parser(
        prog="momentnorm",
        description="Instance Normalization and its family for PyTorch.",
        epilog="Each command has its own --help.",
    )
    release = f"momentnorm {version('momentnorm')}"
    parser.add_argument("--version", action="version", version=release)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    parser.parse_args(argv)
    return 0  # pragma: no cover - parse_args has left: the command is missing or unknown


def _run_command(name: str, argv: Sequence[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f".{command.module}.command", __package__)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not command.extra or missing in ("", __package__):
            raise
        fix = f"pip install 'momentnorm[{command.extra}]'"
        print(f"momentnorm {name}: {error.name} is missing: {fix}", file=sys.stderr)
        return 2
    code: int = module.main(argv)
    return code


def _prepare_streams() -> None:
    """Open closed streams on nothing, and print "?" for a letter that the encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Drop buffered output, about which Python would complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
