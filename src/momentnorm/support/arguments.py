"""Arguments: the parser of all commands, and options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import UserError
from .printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch


class Parser(argparse.ArgumentParser):
    """:class:`argparse.ArgumentParser` that answers wrong options with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """Type of an option: a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return value


# argparse puts the name of the type into its message for text that is no number.
positive.__name__ = "whole number"


def add_outputs(parser: argparse.ArgumentParser, suffixes: Iterable[str]) -> None:
    """Add the option ``--out``, which names files to write instead of printing."""
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"write a file, and print nothing; one of {', '.join(suffixes)}; repeatable",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps ...; default: the GPU if there is one",
    )


def find_device(name: str) -> torch.device:
    """Device of this name; "auto" is the GPU if there is one.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"no device {name!r} can be used here; leave --device out, or use --device cpu"
        ) from error
    if device.type == "meta":
        raise UserError("the device 'meta' holds no pixels; use --device cpu")
    return device
