"""Errors: the exception that a command answers with one line."""

from __future__ import annotations

from .printable import printable


class UserError(Exception):
    """Request that cannot be carried out. The message is one printable line with the fix."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))
