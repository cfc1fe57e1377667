"""The command line, as every command reads and writes it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from ._printable import printable

if TYPE_CHECKING:
    from pathlib import Path


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.fail(f"{message} (see {self.prog} --help)")

    def fail(self, message: object) -> NoReturn:
        """Leave with exit code 2 and one line on stderr."""
        self.exit(2, f"{self.prog}: {printable(message)}\n")


def say(program: str, text: object) -> None:
    """A line for people on stderr, apart from the output."""
    print(f"{program}: {printable(text)}", file=sys.stderr, flush=True)


def print_path(path: Path) -> None:
    """A written file's name on stdout; characters that would act on a terminal are escaped."""
    print(printable(path))
