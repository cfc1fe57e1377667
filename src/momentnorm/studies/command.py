"""``momentnorm study``: options, progress, and errors as one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser, positive
from ..support.machine import cores
from ..support.terminal import answer, print_path, progress, say, stop_requested
from .catalogue import STUDIES
from .errors import PROGRAM, StudyError
from .layers import KINDS
from .page import FOLDER, write_page
from .runner import BOTH, SEEDS, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Row
    from .study import AnyStudy

STOPPED = "stopped; the same command goes on from the last finished cell"


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm study``. The exit code is 0, 2 for wrong input, or 130 if it was stopped."""
    return answer(PROGRAM, lambda: _study(argv), stopped=STOPPED)


def _study(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        for study in STUDIES.values():
            print(f"{study.name:12} {study.title}")
        return 0
    if arguments.name is None and not arguments.page:
        parser.error("the NAME of a study is needed (--list prints them)")
    if arguments.out is None:
        parser.error("-o FOLDER is needed")
    if not arguments.page and not _run(arguments, _known(arguments.name)):
        return 130
    print_path(write_page(arguments.out))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="What is often said of these norms, as experiments to rerun. A run that is "
        "stopped goes on where it was.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"results go to FOLDER/{FOLDER}/NAME.csv and .json, the page to FOLDER/studies.md",
    )
    parser.add_argument("--quick", action="store_true", help="the small setting: a minute or two")
    parser.add_argument(
        "--seeds",
        type=positive,
        default=SEEDS,
        metavar="N",
        help=f"seeds 0 to N - 1; default {SEEDS}",
    )
    parser.add_argument(
        "--layers",
        choices=(*KINDS, BOTH),
        default="momentnorm",
        help="whose layers; default ours; both take turns, for fair times",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=cores(),
        metavar="N",
        help="trainings at a time, each on one core; default: as many as there are cores",
    )
    parser.add_argument("--restart", action="store_true", help="drop earlier results of the study")
    parser.add_argument("--page", action="store_true", help="only plots and page, from the CSVs")
    parser.add_argument("--list", action="store_true", help="print the studies")
    return parser


def _known(name: str) -> AnyStudy:
    if name not in STUDIES:
        raise StudyError(f"no study is named {name!r}; known are {', '.join(STUDIES)}")
    return STUDIES[name]


def _run(arguments: argparse.Namespace, study: AnyStudy) -> bool:
    with progress() as bar, stop_requested() as should_stop:
        task = bar.add_task(study.name, total=None)

        def on_cell(done: int, total: int, row: Row) -> None:
            bar.update(task, completed=done, total=total)
            if bar.disable and "seconds" in row:  # no terminal, and not there before: a plain line
                keys = " ".join(str(row[name]) for name in list(row)[: list(row).index("seed")])
                say(PROGRAM, f"{done}/{total} {keys} seed {row['seed']}: {row['seconds']} s")

        finished = run(
            study,
            arguments.out / FOLDER,
            setting="quick" if arguments.quick else "full",
            seeds=range(arguments.seeds),
            layers=arguments.layers,
            restart=arguments.restart,
            jobs=arguments.jobs,
            on_cell=on_cell,
            should_stop=should_stop,
        )
    if not finished:
        say(PROGRAM, STOPPED)
    return finished
