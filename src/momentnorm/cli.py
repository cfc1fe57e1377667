"""``momentnorm``: the commands, each imported only when it is the one that runs."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from ._arguments import Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: What the extras of these commands install.
_EXTRAS = {
    "stylize": ("numpy", "PIL", "safetensors", "rich", "matplotlib"),
    "export": ("numpy", "onnx", "onnxruntime"),
    "studies": ("numpy", "PIL", "safetensors", "rich", "matplotlib", "sklearn"),
}


def _missing(command: str, extra: str, error: ImportError) -> int:
    """Say which extra brings the package; of an error of our own, raise it again."""
    if (error.name or "").partition(".")[0] not in _EXTRAS[extra]:
        raise error
    print(
        f"momentnorm {command}: {error.name} is missing: pip install 'momentnorm[{extra}]'",
        file=sys.stderr,
    )
    return 2


def _run_stylize(argv: Sequence[str]) -> int:
    try:
        from .stylize import commands
    except ImportError as error:
        return _missing("stylize", "stylize", error)
    return commands.main(argv)


def _run_explain(argv: Sequence[str]) -> int:
    from .explain import command

    return command.main(argv)


def _run_study(argv: Sequence[str]) -> int:
    try:
        from .studies import command
    except ImportError as error:
        return _missing("study", "studies", error)
    return command.main(argv)


def _run_export_check(argv: Sequence[str]) -> int:
    try:
        from .deployment import command
    except ImportError as error:
        return _missing("export-check", "export", error)
    return command.main(argv)


def _run_doctor(argv: Sequence[str]) -> int:
    from . import _doctor

    return _doctor.main(argv)


def _run_figure(argv: Sequence[str]) -> int:
    from .explain import figure

    return figure.main(argv)


def _run_explore(argv: Sequence[str]) -> int:
    from .explain import explore

    return explore.main(argv)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "stylize": (_run_stylize, "paint photographs in the manner of a picture; train your own style"),
    "explain": (_run_explain, "show what a layer computes, step by step, on numbers of yours"),
    "figure": (_run_figure, "draw which elements of a feature map share their statistics"),
    "explore": (_run_explore, "write the page on which a normalization is done step by step"),
    "study": (_run_study, "rerun, with numbers, what is often said of these norms"),
    "export-check": (_run_export_check, "compare a model's norms with its ONNX file"),
    "doctor": (_run_doctor, "say which backend takes which call on this machine, and why"),
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
        return COMMANDS[argv[0]][0](argv[1:])
    parser = Parser(
        prog="momentnorm",
        description="Instance Normalization and its family for PyTorch.",
        epilog="Each command has its own --help.",
    )
    release = f"momentnorm {version('momentnorm')}"
    parser.add_argument("--version", action="version", version=release)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    parser.parse_args(argv)
    return 0  # pragma: no cover - parse_args has left: the command is missing or unknown


def _prepare_streams() -> None:
    """What was closed (``>&-``) takes everything; a letter that the encoding lacks becomes "?"."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is still in the buffer goes nowhere: Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
