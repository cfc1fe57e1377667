"""Name of the command, and its exception."""

from __future__ import annotations

from ..support.errors import UserError

PROGRAM = "momentnorm study"


class StudyError(UserError):
    """A study that cannot be run or shown. The message is one line that names the fix."""
