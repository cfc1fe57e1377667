"""Command ``momentnorm study depth --activations``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from ...support.arguments import Parser, add_outputs
from ...support.files import check_path, write_file
from ...support.terminal import answer, print_path
from ..errors import PROGRAM
from . import picture
from .export import numbers, page, rows, table
from .measure import NORMS, Activations, Settings, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Writer of a file by its suffix.
WRITERS: dict[str, Callable[[Activations], str | bytes]] = {
    ".png": lambda found: picture.draw(found, "png"),
    ".svg": lambda found: picture.draw(found, "svg"),
    ".gif": picture.animate,
    ".html": page,
    ".json": numbers,
    ".csv": rows,
    ".txt": table,
}

_HELP = {
    "depth": "layers",
    "channels": "channels of each layer, a multiple of 4",
    "size": "height and width of an image",
    "batch": "number of images",
    "steps": "steps of training",
    "rate": "learning rate",
    "gain": "factor on the first weights that torch draws",
    "seed": "seed of the images and of the first weights",
}


def main(argv: Sequence[str]) -> int:
    """Run the command. The exit code is 0, 2 for wrong input, or 130 if it was stopped."""
    return answer(PROGRAM, lambda: _activations(argv))


def _activations(argv: Sequence[str]) -> int:
    given = _parser().parse_args(argv)
    for path in given.out:
        check_path(path, tuple(WRITERS))
    norms = None if given.norms is None else [name.strip() for name in given.norms.split(",")]
    found = measure(norms, Settings(**{name: getattr(given, name) for name in _HELP}))
    for path in given.out:
        write_file(path, WRITERS[path.suffix.lower()](found))
        print_path(path)
    if not given.out:
        print(table(found), end="")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} depth --activations",
        usage="%(prog)s [options]",
        description="Show how activations and gradients change from layer to layer of a deep "
        "network, with each norm and without, before and during a short training.",
    )
    parser.add_argument("study", choices=("depth",), metavar="depth", help="the study")
    parser.add_argument("--activations", action="store_true", help="this measurement")
    parser.add_argument("--norms", metavar="NAME,...", help=f"default {','.join(NORMS)}")
    for setting in fields(Settings):
        kind, metavar = (int, "N") if isinstance(setting.default, int) else (float, "X")
        parser.add_argument(
            f"--{setting.name}",
            type=kind,
            default=setting.default,
            metavar=metavar,
            help=f"{_HELP[setting.name]}; default {setting.default:g}",
        )
    add_outputs(parser, tuple(WRITERS))
    return parser
