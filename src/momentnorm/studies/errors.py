"""Errors: the name of the command, and its exception."""

from __future__ import annotations

from ..support.errors import UserError

PROGRAM = "momentnorm study"


class StudyError(UserError):
    """Study that cannot be run or shown. The message is one line that names the fix."""
