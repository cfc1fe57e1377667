"""Command ``momentnorm figure``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser
from ..support.errors import UserError
from ..support.files import check_path, write_file
from ..support.terminal import answer, print_path
from .figure import KINDS, USUAL, draw

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "momentnorm figure"


def _sizes(given: str) -> tuple[int, ...]:
    return tuple(int(size) for size in given.split(","))


_sizes.__name__ = "list of sizes, such as 4,6,4,4"


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm figure``. The exit code is 0, or 2 for wrong input."""
    return answer(PROGRAM, lambda: _figure(argv))


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = Parser(
        prog=PROGRAM,
        description="Draw which elements of a feature map share their statistics.",
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="NORM",
        help=f"kinds of norm to draw, of {', '.join(KINDS)}; default: {' '.join(USUAL)}",
    )
    parser.add_argument(
        "--shape",
        type=_sizes,
        default=(4, 6, 4, 4),
        metavar="N,C,...",
        help="shape of the feature map; default 4,6,4,4",
    )
    parser.add_argument(
        "--groups",
        type=int,
        default=2,
        metavar="G",
        help="number of groups in a group norm; default 2",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="I",
        help="sample of the plane that is highlighted; default 0",
    )
    parser.add_argument(
        "--channel",
        type=int,
        default=0,
        metavar="I",
        help="channel of the plane that is highlighted; default 0",
    )
    parser.add_argument("--dark", action="store_true", help="draw for a dark page or slide")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="file to write: .svg, .png or .pdf",
    )
    return parser.parse_args(argv)


def _figure(argv: Sequence[str]) -> int:
    given = _parsed(argv)
    try:
        check_path(given.out, (".svg", ".png", ".pdf"))
        drawing = draw(
            given.kinds or USUAL,
            given.shape,
            groups=given.groups,
            sample=given.sample,
            channel=given.channel,
            dark=given.dark,
        )
        write_file(given.out, _as_file(drawing, given.out.suffix.lower()))
    except ValueError as error:
        raise UserError(str(error)) from error
    print_path(given.out)
    return 0


def _as_file(drawing: str, suffix: str) -> bytes:
    """Content of a file of this suffix."""
    if suffix == ".svg":
        return drawing.encode()
    try:
        import cairosvg  # type: ignore[import-untyped]
    except (ImportError, OSError) as error:  # OSError if the Cairo library is missing
        raise ValueError(
            f"{suffix} needs CairoSVG and the Cairo library (pip install 'momentnorm[figure]'); or "
            "write .svg, and convert that by rsvg-convert, Inkscape or a browser"
        ) from error
    if suffix == ".pdf":
        return bytes(cairosvg.svg2pdf(drawing.encode()))
    return bytes(cairosvg.svg2png(drawing.encode(), scale=2))
