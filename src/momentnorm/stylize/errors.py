"""The one exception of this application."""

from __future__ import annotations

from .._printable import OneLineError


class StylizeError(OneLineError):
    """What was asked cannot be done. The message is one line that says what to do instead."""
