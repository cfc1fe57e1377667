"""Text from outside (names of files and layers, words of a file) on one safe line."""

from __future__ import annotations

import unicodedata

#: Unicode's categories of characters that act on a terminal or a page instead of being seen:
#: control characters, marks that turn the direction of writing, lone surrogates, line separators.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: object) -> str:
    r"""``str(text)`` with every unseen character written as its escape.

    >>> print(printable("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSEEN
        else character
        for character in shown
    )


def one_line(error: BaseException) -> str:
    """The message of any exception, on one line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


class OneLineError(Exception):
    """An error whose message is one printable line, whatever names and words are part of it."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))
