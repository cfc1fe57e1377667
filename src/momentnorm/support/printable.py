"""Printable text: strings from outside, on one line and without invisible characters."""

from __future__ import annotations

import unicodedata

#: Unicode's categories of invisible characters, some of which act on a terminal or a page: control
#: characters, marks that change the direction of writing, lone surrogates, line separators.
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: object) -> str:
    r"""``str(text)`` with every invisible character written as its escape.

    >>> print(printable("a\x1b[31m\nb"))
    a\x1b[31m\nb
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE
        else character
        for character in shown
    )


def one_line(error: BaseException) -> str:
    """Message of any exception, on one printable line."""
    return printable(" ".join(str(error).split())) or type(error).__name__
