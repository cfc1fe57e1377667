"""Printable text: names and words from outside, on one line without unseen characters."""

from __future__ import annotations

import unicodedata

#: Unicode's categories of characters that a terminal or a page obeys and does not show: control
#: characters, marks that turn the direction of writing, lone surrogates, line separators.
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
    """Message of any exception, on one printable line."""
    return printable(" ".join(str(error).split())) or type(error).__name__
