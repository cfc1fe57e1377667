"""Build docs/learn: run the commands of its pages, and write their output into the pages.

    python tools/build_learn.py                 # build every page, in place
    python tools/build_learn.py 2-planes.md     # build this page
    python tools/build_learn.py --check         # change nothing; exit 1 if a page is out of date

In a ``console`` block, each line that begins with ``$ `` is run, and its output replaces the lines
after it. The ``python`` blocks of a page run in one namespace, and their output replaces the
``text`` block that follows. Files that commands write lie beside the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent.parent / "docs" / "learn"

_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(\n*^```text\n.*?^```\n)?", re.M | re.S)


def built(page: str, folder: Path) -> str:
    """Text of a page with the output of its commands and its Python, run in ``folder``."""
    names: dict[str, Any] = {}

    def run(block: re.Match[str]) -> str:
        kind, body, output = block.groups()
        if kind == "console":
            commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
            shown = "\n".join(f"$ {command}\n{_command(command)}" for command in commands)
            return f"```console\n{shown}```\n{output or ''}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, "<page>", "exec"), names)
        if not printed.getvalue():
            return block.group()
        return f"```python\n{body}```\n\n```text\n{printed.getvalue()}```\n"

    with _inside(folder):
        return _BLOCK.sub(run, page)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change the working directory. (``contextlib.chdir`` needs Python 3.11.)"""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _command(line: str) -> str:
    """Output of a command, with its error messages."""
    from momentnorm.cli import main

    name, *arguments = shlex.split(line)
    if name == "cat":
        return "".join(Path(argument).read_text() for argument in arguments)
    if name != "momentnorm":
        raise ValueError(f"{line}: pages run momentnorm and cat, nothing else")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        main(arguments)
    return printed.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="pages to build; default: all")
    given = parser.parse_args()
    check, stale = given.check, 0
    pages = [PAGES / name for name in given.pages] or sorted(PAGES.glob("*.md"))
    for path in pages:
        before = path.read_text(encoding="utf-8")
        after = built(before, PAGES)
        if after != before:
            stale += 1
            print(f"{path.name}: {'out of date' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
