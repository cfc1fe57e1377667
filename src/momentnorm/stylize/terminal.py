"""What the commands share: options that several have, devices, progress, stopping."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import _arguments
from .._arguments import Parser as Parser
from .errors import StylizeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PROGRAM = "momentnorm stylize"

STOPPING = b"momentnorm: stopping when what is under way is finished; again to stop at once\n"


def say(text: str) -> None:
    """A line for people, apart from the output."""
    _arguments.say(PROGRAM, text)


def positive(text: str) -> int:
    """For argparse: a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return value


positive.__name__ = "whole number"


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps ...; default: the GPU where there is one",
    )


def find_device(name: str) -> torch.device:
    """The device of this name, if this machine has it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise StylizeError(
            f"no device {name!r} can be used here; leave --device out, or use --device cpu"
        ) from error
    if device.type == "meta":
        raise StylizeError("the device 'meta' holds no pixels; use --device cpu")
    return device


def progress(*more: str) -> Progress:
    """A bar on stderr, with further fields of the task behind it; silent without a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8 if more else 40),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in more),
        console=console,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or ``kill``) into an answer; the second one ends the program.

    The first is acknowledged at once on stderr, since what is under way may take long.
    """
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # print may be what was interrupted, and cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"\n" * os.isatty(2) + STOPPING)  # behind the bar and the ^C

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
