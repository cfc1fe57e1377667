"""Terminal: lines on stderr, progress bars, exit codes, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from .errors import UserError
from .machine import is_out_of_memory
from .printable import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from rich.progress import Progress

STOPPING = b"momentnorm: stopping after the current step; press Ctrl-C again to stop at once\n"


def say(program: str, text: object) -> None:
    """Print a line on stderr, which keeps it out of the output."""
    print(f"{program}: {printable(text)}", file=sys.stderr, flush=True)


def print_path(path: Path) -> None:
    """Print the path of a written file on stdout, with invisible characters escaped."""
    print(printable(path))


def answer(
    program: str,
    action: Callable[[], int],
    *,
    stopped: str = "stopped",
    smaller: str = "choose a smaller size",
) -> int:
    """Run a command, and print its error, if any, as one line on stderr.

    Args:
        program: the command, such as "momentnorm stylize".
        action: function that does the work. It returns an exit code or raises :class:`UserError`.
        stopped: message after Ctrl-C.
        smaller: fix that is named if memory runs out.

    Returns:
        The exit code: that of ``action``, 2 for an error, 130 for Ctrl-C.
    """
    try:
        return action()
    except UserError as error:
        say(program, f"error: {one_line(error)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(program, f"error: not enough memory; {smaller}")
        return 2
    except KeyboardInterrupt:
        say(program, stopped)
        return 130


def progress(*more: str) -> Progress:
    """Progress bar on stderr, silent without a terminal.

    Args:
        more: names of further fields of the task to show.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

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
    """Give a function that says whether Ctrl-C (or ``kill``) has asked the command to stop.

    The first request prints a line at once, since the current step may take long. The second one
    ends the program.
    """
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The signal may have interrupted print, which cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"\n" * os.isatty(2) + STOPPING)  # below the bar and the ^C

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
