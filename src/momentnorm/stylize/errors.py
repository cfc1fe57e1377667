"""Name of the command, and its exception."""

from __future__ import annotations

from ..support.errors import UserError

PROGRAM = "momentnorm stylize"


class StylizeError(UserError):
    """A stylization or training that cannot be done. The message is one line that names the fix."""
