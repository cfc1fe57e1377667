"""Document: the page as one HTML file that loads nothing else.

The sources of the page lie in the folder ``page``. The module ``compute.mjs`` has the numbers, by
the steps and the names of the library. Each other module has one part of what the reader sees.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

#: Modules of the page. Each one comes after the modules that it imports.
MODULES = ("compute", "state", "words", "dom", "grid", "cube", "panel", "controls", "photo", "main")

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./\w+\.mjs";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|class|function|async)", re.MULTILINE)


def _source(name: str) -> str:
    return files(__package__).joinpath("page").joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """All modules as one script. It needs no imports, because no two modules share a name."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _source(f"{name}.mjs"))) for name in MODULES)


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


def page() -> str:
    """Whole page, as one HTML document.

    Its content security policy allows this script and this style, and forbids every request.

    >>> page().startswith("<!doctype html>")
    True
    """
    style, code = _source("style.css"), script()
    policy = (
        f"default-src 'none'; script-src {_hash(code)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    document = _source("index.html")
    for place, content in (("POLICY", policy), ("STYLE", style), ("SCRIPT", code)):
        document = document.replace(place, content, 1)
    return document
