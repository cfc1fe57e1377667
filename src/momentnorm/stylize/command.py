"""``momentnorm stylize``: its commands, and errors as one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser, add_device, positive
from ..support.terminal import answer, print_path
from . import command_compare, command_learn, command_photos, command_train
from .artworks import ARTWORKS, draw
from .errors import PROGRAM
from .images import Photo, check_output, to_tensor, write_photo
from .styles import bundled_styles

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
further commands, each with its own --help (a photograph of that name is written ./learn):
  momentnorm stylize learn     learn the style of a picture of yours, in minutes
  momentnorm stylize train     train a new network for many styles, in hours
  momentnorm stylize draw      write one of the drawn style pictures
  momentnorm stylize compare   instance norm against batch norm: plot, pictures, numbers
"""


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm stylize``. The exit code is 0, 2 for wrong input, or 130 after Ctrl-C."""
    commands = {"learn": _learn, "train": _train, "compare": _compare, "draw": _draw}

    def action() -> int:
        return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else _photos(argv)

    return answer(PROGRAM, action, smaller="use a smaller --size or --batch")


def _learn(argv: Sequence[str]) -> int:
    parser = Parser(prog=f"{PROGRAM} learn", description="Learn the style of a picture.")
    command_learn.add_arguments(parser)
    return command_learn.run(parser.parse_args(argv))


def _train(argv: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} train", description="Train a network for many styles, one per picture."
    )
    command_train.add_arguments(parser)
    return command_train.run(parser.parse_args(argv))


def _compare(argv: Sequence[str]) -> int:
    parser = Parser(prog=f"{PROGRAM} compare", description="Compare two norms, trained alike.")
    command_compare.add_arguments(parser)
    return command_compare.run(parser.parse_args(argv))


def _draw(argv: Sequence[str]) -> int:
    parser = Parser(prog=f"{PROGRAM} draw", description="Write a drawn style picture.")
    parser.add_argument("name", metavar="NAME", help=", ".join(ARTWORKS))
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--size", type=positive, default=512, metavar="N", help="default 512")
    arguments = parser.parse_args(argv)
    check_output(arguments.out)
    write_photo(Photo(to_tensor(draw(arguments.name, arguments.size))), arguments.out)
    print_path(arguments.out)
    return 0


def _photos(argv: Sequence[str]) -> int:
    parser = Parser(
        prog=PROGRAM,
        description="Paint photographs in the style of a picture, each at its own size.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="an image file, a folder of them, or skimage:NAME (such as skimage:astronaut)",
    )
    parser.add_argument(
        "--style",
        metavar="STYLE",
        help="a style, a style file, a picture to learn the style of, or a blend such as "
        f"mosaic:0.6,swirl:0.4; styles: {', '.join(bundled_styles())}",
    )
    parser.add_argument(
        "-o", "--out", metavar="OUT", help="a file; with several photographs, a folder"
    )
    parser.add_argument("--size", type=positive, metavar="N", help="longer side, pixels")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="0 (photograph) to 1; default 1"
    )
    parser.add_argument("--keep-color", action="store_true", help="keep the photograph's colours")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the styles; with -o, save a sheet: a PHOTO, or an example, in every style",
    )
    add_device(parser)
    arguments = parser.parse_args(argv)
    if arguments.list:
        return command_photos.list_styles(arguments)
    for name, value in (
        ("a PHOTO", arguments.photos),
        ("--style", arguments.style),
        ("-o OUT", arguments.out),
    ):
        if not value:
            parser.error(f"{name} is needed")
    return command_photos.run(arguments)
