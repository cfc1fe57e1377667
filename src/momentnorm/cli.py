"""Command line ``momentnorm COMMAND``. Only the module of that command is imported."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from .support.arguments import Parser
from .support.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command(NamedTuple):
    """Command: the package of its ``command.main(argv)``, and its line in ``--help``."""

    module: str
    help: str
    extra: str = ""  # the extra that installs the packages it needs


COMMANDS = {
    "stylize": Command("stylize", "turn photographs into paintings; train new styles", "stylize"),
    "explain": Command("explainer", "show what a layer computes, step by step, on your numbers"),
    "figure": Command("figure", "draw which elements of a feature map share their statistics"),
    "explore": Command(
        "explore", "write a page that shows normalization step by step, on your numbers"
    ),
    "study": Command(
        "studies", "repeat experiments behind common claims about these norms", "studies"
    ),
    "export-check": Command(
        "deployment",
        "compare each norm of an ONNX file with the model that it comes from",
        "export",
    ),
    "doctor": Command("doctor", "show which backend takes which call on this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``momentnorm COMMAND ...``, and return the exit code."""
    _prepare_streams()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # an error at exit could not be answered with a line
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has ended, as in `| head`
        _drop_output()
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        say("momentnorm", f"error: the output cannot be written ({error.strerror}); free space")
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
    return 0  # pragma: no cover - parse_args exits: the command is missing or unknown


def _run_command(name: str, argv: Sequence[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f".{command.module}.command", __package__)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not command.extra or missing in ("", __package__):
            raise
        fix = f"pip install 'momentnorm[{command.extra}]'"
        say(f"momentnorm {name}", f"error: {error.name} is missing: {fix}")
        return 2
    code: int = module.main(argv)
    return code


def _prepare_streams() -> None:
    """Replace closed streams by the null device, and unknown letters in the output by "?"."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Drop buffered output. Otherwise Python would print an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
