"""Errors: the exception that a command answers with one line."""

from __future__ import annotations


class UserError(Exception):
    """A request that cannot be carried out. The message is one line that names the fix."""


def one_line(error: BaseException) -> str:
    """Message of any exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
