"""The page on which a normalization is done step by step: one file, and no network.

Its sources lie beside this module: ``compute.mjs`` has the numbers, the same steps by the same
names as the library, and each of the other modules one thing that is seen. :func:`page` puts them
into one HTML document.
"""

from __future__ import annotations

import base64
import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..._arguments import Parser, print_path
from ..saving import check_path, write
from ..trace import ExplainError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["page", "serve"]

#: In the order in which they need one another.
MODULES = ("compute", "state", "words", "dom", "grid", "cube", "panel", "controls", "photo", "main")

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./\w+\.mjs";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|class|function|async)", re.MULTILINE)


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """The modules as one: their names are distinct, so what they import is there."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _source(f"{name}.mjs"))) for name in MODULES)


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


def page() -> str:
    """The whole page, as one HTML document.

    Its content security policy allows this script and this style, and no request to anywhere.

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


def serve(port: int) -> ThreadingHTTPServer:
    """A server of the page on this machine alone; ``serve_forever()`` starts it.

    Args:
        port: on the loopback interface; 0 for any that is free.

    Raises:
        OSError: the port is taken, or not allowed.
    """
    content = page().encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/"
            body = content if found else b"The page is at /\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", f"text/{'html' if found else 'plain'}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are of no interest."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(argv: Sequence[str]) -> int:
    """``momentnorm explore``. 0 is success, 2 wrong input: one line on stderr says what."""
    parser = Parser(
        prog="momentnorm explore",
        description="The page on which a normalization is done step by step.",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write the page, one .html file"
    )
    way.add_argument("--serve", action="store_true", help="show it on this machine until Ctrl-C")
    parser.add_argument(
        "--port", type=int, default=8000, help="of --serve; default 8000, 0 for any that is free"
    )
    given = parser.parse_args(argv)
    if given.serve:
        return _serve_until_stopped(parser, given.port)
    try:
        check_path(given.out, (".html",))
        write(given.out, page())
    except ExplainError as error:
        parser.fail(error)
    print_path(given.out)
    return 0


def _serve_until_stopped(parser: Parser, port: int) -> int:
    try:
        server = serve(port)
    except (OSError, OverflowError) as error:
        parser.fail(f"{error}; choose another --port")
    with server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C stops)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
