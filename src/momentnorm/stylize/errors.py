"""The one exception of this application."""

from __future__ import annotations


class StylizeError(Exception):
    """What was asked cannot be done. The message is one line that says what to do instead."""


def one_line(error: BaseException) -> str:
    """The message of any exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
