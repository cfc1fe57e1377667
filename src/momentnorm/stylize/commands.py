"""``momentnorm stylize``: options, and errors as one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._arguments import print_path
from .._machine import is_out_of_memory
from . import command_compare, command_photos, command_train, sheet
from .artworks import ARTWORKS, draw
from .errors import StylizeError
from .images import Photo, check_output, to_tensor, write_photo
from .styles import bundled_styles
from .terminal import PROGRAM, Parser, add_device, positive, say

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
further commands, each with its own --help (a photograph of that name is written ./train):
  momentnorm stylize train     train a style on a picture of yours
  momentnorm stylize draw      write one of the drawn style pictures
  momentnorm stylize compare   instance norm against batch norm: plot, pictures, numbers
"""


def main(argv: Sequence[str]) -> int:
    """Run one command. 0 is success, 2 wrong input (one line on stderr says what), 130 Ctrl-C."""
    try:
        if argv[:1] == ["train"]:
            parser = Parser(prog=f"{PROGRAM} train", description="Train a style.")
            command_train.add_arguments(parser)
            return command_train.run(parser.parse_args(argv[1:]))
        if argv[:1] == ["compare"]:
            parser = Parser(prog=f"{PROGRAM} compare", description="Two norms, trained alike.")
            command_compare.add_arguments(parser)
            return command_compare.run(parser.parse_args(argv[1:]))
        if argv[:1] == ["draw"]:
            return _draw(argv[1:])
        return _photos(argv)
    except StylizeError as error:
        say(f"error: {error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say("error: not enough memory; use a smaller --size or --batch")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130


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
    import argparse

    parser = Parser(
        prog=PROGRAM,
        description="Photographs in the manner of a picture, each at its own size.",
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
        "--style", metavar="STYLE", help=f"a style file, or one of {', '.join(bundled_styles())}"
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
        "--list", action="store_true", help="print the styles; with -o, save a sheet of them"
    )
    add_device(parser)
    arguments = parser.parse_args(argv)
    if arguments.list:
        if arguments.out:
            sheet.style_sheet(Path(arguments.out))
        sheet.print_styles()
        return 0
    for name, value in (
        ("a PHOTO", arguments.photos),
        ("--style", arguments.style),
        ("-o OUT", arguments.out),
    ):
        if not value:
            parser.error(f"{name} is needed")
    return command_photos.run(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
