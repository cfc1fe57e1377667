"""Command ``momentnorm explore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser
from ..support.errors import UserError
from ..support.files import check_path, write_file
from ..support.terminal import answer, print_path
from .document import page
from .server import serve

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "momentnorm explore"


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm explore``. The exit code is 0, or 2 for wrong input."""
    return answer(PROGRAM, lambda: _explore(argv))


def _explore(argv: Sequence[str]) -> int:
    parser = Parser(
        prog=PROGRAM,
        description="Write or serve a page on which you normalize step by step.",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="write the page, one .html file"
    )
    way.add_argument(
        "--serve", action="store_true", help="serve the page on this machine until Ctrl-C"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port of --serve; default 8000, 0 for any free one"
    )
    given = parser.parse_args(argv)
    if given.serve:
        return _serve_until_stopped(given.port)
    check_path(given.out, (".html",))
    write_file(given.out, page())
    print_path(given.out)
    return 0


def _serve_until_stopped(port: int) -> int:
    try:
        server = serve(port)
    except (OSError, OverflowError) as error:
        raise UserError(f"{error}; choose another --port") from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C stops)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
