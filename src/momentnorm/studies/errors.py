"""The one exception of the studies."""

from __future__ import annotations

from momentnorm._printable import OneLineError


class StudyError(OneLineError):
    """What was asked cannot be done. The message is one line that says what to do instead."""
