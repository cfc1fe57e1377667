"""Command ``momentnorm study``: options, and progress on stderr."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import Parser, positive
from ..support.machine import cores
from ..support.terminal import answer, print_path, progress, say, stop_requested
from .activations import command as activations
from .catalogue import STUDIES
from .errors import PROGRAM, StudyError
from .layers import KINDS
from .page import FOLDER, write_page
from .runner import BOTH, SEEDS, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Row
    from .study import AnyStudy

STOPPED = "stopped; the same command continues after the last finished cell"


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm study``. The exit code is 0, 2 for wrong input, or 130 if it was stopped."""
    if "--activations" in argv:
        return activations.main(argv)
    return answer(PROGRAM, lambda: _study(argv), stopped=STOPPED)


def _study(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        print("\n".join(map(_line, STUDIES.values())))
        return 0
    if arguments.name is None and not arguments.page:
        parser.error("the NAME of a study is missing: choose one from --list")
    if arguments.out is None:
        parser.error("the folder for the results is missing: add -o FOLDER")
    if not arguments.page and not _run(arguments, _known(arguments.name)):
        return 130
    print_path(write_page(arguments.out))
    return 0


def _line(study: AnyStudy) -> str:
    """Name and question of a study, and how long it takes."""
    quick, full = study.minutes
    return f"{study.name:12} {study.question} (--quick: {quick} min, full: {full} min of one core)"


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Repeat an experiment behind a common claim about these norms. A run that was "
        "stopped continues after its last finished cell.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"write results to FOLDER/{FOLDER}/NAME.csv and .json, the page to FOLDER/studies.md",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller networks and shorter trainings"
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        default=SEEDS,
        metavar="N",
        help=f"repeat each training with seeds 0 to N - 1; default {SEEDS}",
    )
    parser.add_argument(
        "--layers",
        choices=(*KINDS, BOTH),
        default="momentnorm",
        help="whose layers to use; default momentnorm; both: they take turns, for fair times",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=cores(),
        metavar="N",
        help="number of trainings at a time, each on one core; default: the number of cores",
    )
    parser.add_argument(
        "--restart", action="store_true", help="delete earlier results of the study first"
    )
    parser.add_argument(
        "--page", action="store_true", help="only draw the plots and write the page, from the CSVs"
    )
    parser.add_argument(
        "--list", action="store_true", help="print each study's question and how long it takes"
    )
    parser.add_argument(
        "--activations",
        action="store_true",
        help="with depth: measure each layer's activations instead; for its options see "
        f"{PROGRAM} depth --activations --help",
    )
    return parser


def _known(name: str) -> AnyStudy:
    if name not in STUDIES:
        raise StudyError(f"no study is named {name!r}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def _run(arguments: argparse.Namespace, study: AnyStudy) -> bool:
    """Run a study with progress on stderr. True if it is finished, False if it was stopped."""
    with progress() as bar, stop_requested() as should_stop:
        task = bar.add_task(study.name, total=None)

        def on_cell(done: int, total: int, row: Row) -> None:
            bar.update(task, completed=done, total=total)
            # Without a terminal there is no bar: each cell that was computed now gets a line.
            if bar.disable and "seconds" in row:
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
