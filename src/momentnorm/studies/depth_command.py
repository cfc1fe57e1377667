"""``momentnorm explain depth``: the study of depth as a table, a picture, an animation, a page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser
from ..support.files import check_path, write_file
from ..support.terminal import print_path
from . import depth_picture
from .depth_activations import MEASURES, NORMS, Study, study, table

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the command. What is wrong with its options is raised as an StudyError."""
    parser = Parser(
        prog="momentnorm study depth",
        description="What happens to activations through a deep network, by norm and layer, over "
        "a few real steps of training.",
    )
    parser.add_argument("--norms", metavar="NAME,...", help=f"default {','.join(NORMS)}")
    for name, default, what in (
        ("depth", 16, "layers"),
        ("channels", 8, "channels of each layer"),
        ("size", 12, "pixels of an image's side"),
        ("batch", 16, "images"),
        ("steps", 16, "steps of training"),
        ("seed", 0, "of the images and of the first weights"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what}; default {default}"
        )
    parser.add_argument("--rate", type=float, default=0.02, help="of learning; default 0.02")
    parser.add_argument(
        "--gain", type=float, default=1.0, help="of the first weights, over torch's own; default 1"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"write a file, and print nothing; one of {', '.join(WRITERS)}; repeatable",
    )
    arguments = parser.parse_args(argv)
    for path in arguments.out:
        check_path(path, tuple(WRITERS))
    norms = None if arguments.norms is None else [n.strip() for n in arguments.norms.split(",")]
    found = study(
        norms,
        depth=arguments.depth,
        channels=arguments.channels,
        size=arguments.size,
        batch=arguments.batch,
        steps=arguments.steps,
        rate=arguments.rate,
        gain=arguments.gain,
        seed=arguments.seed,
    )
    for path in arguments.out:
        write_file(path, WRITERS[path.suffix.lower()](found))
        print_path(path)
    if not arguments.out:
        print(table(found), end="")
    return 0


def page(found: Study) -> str:
    """One file with the numbers and what draws them; it needs no network."""
    numbers = json.dumps(found.to_dict() | {"measures": MEASURES}, allow_nan=False)
    template = resources.files(__package__).joinpath("depth.html").read_text(encoding="utf-8")
    return template.replace("/*NUMBERS*/", numbers.replace("</", "<\\/"))


def rows(found: Study) -> str:
    """A line for each norm, step and layer, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["norm", "step", "layer", *MEASURES, "loss"])
    for course in found.courses:
        for step in range(found.steps + 1):
            for layer in range(found.depth):
                measured = [getattr(course, measure)[step][layer] for measure in MEASURES]
                writer.writerow([course.norm, step, layer + 1, *measured, course.loss[step]])
    return text.getvalue()


#: By suffix.
WRITERS: dict[str, Callable[[Study], str | bytes]] = {
    ".png": lambda found: depth_picture.draw(found, "png"),
    ".svg": lambda found: depth_picture.draw(found, "svg"),
    ".gif": depth_picture.animate,
    ".html": page,
    ".json": lambda found: json.dumps(found.to_dict(), allow_nan=False) + "\n",
    ".csv": rows,
    ".txt": table,
}
