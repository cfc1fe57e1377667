"""Compute the cells of a study that are not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import StudyError
from .layers import KINDS
from .record import Record, conditions
from .results import Row
from .study import AnyStudy

#: How many there are unless told otherwise: 0, 1, 2.
SEEDS = 3

#: Every kind of layers.
BOTH = "both"

#: Called after each cell: how many are done, how many there are, and the row.
OnCell = Callable[[int, int, Row], None]


def run(
    study: AnyStudy,
    folder: Path,
    *,
    setting: str = "quick",
    seeds: Sequence[int] = range(SEEDS),
    layers: str = "momentnorm",
    restart: bool = False,
    on_cell: OnCell = lambda done, total, row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run a study, or go on with it: every cell that has its row in the CSV is left as it is.

    Args:
        study: one of :data:`STUDIES`.
        folder: of ``NAME.csv``, which has a row for each finished cell, and ``NAME.json``, which
            says how they were made.
        setting: "quick" or "full".
        seeds: each cell is computed with each; more can be added later.
        layers: "momentnorm", "torch", or "both", which take turns cell by cell, so that what else
            the machine does slows both alike. Other layers' rows stay.
        restart: drop what is there.
        on_cell: told of each cell, those that were there included.
        should_stop: asked after each cell that was computed.

    Returns:
        Whether it is finished.

    Raises:
        StudyError: layers that the study cannot be run with, or results made otherwise.
    """
    kinds = tuple(KINDS) if layers == BOTH else (layers,)
    for kind in kinds:
        if kind not in study.kinds:
            raise StudyError(
                f"{study.name} cannot be run with the layers of {kind}, which lack what it is "
                f"about; use --layers {' or '.join(study.kinds)}"
            )
    settings = {"quick": study.quick, "full": study.full}[setting]
    record = Record(folder, study.name, conditions(setting, settings), restart)
    # Seed by seed: a study that is stopped early has whole comparisons of the first seeds.
    cells = [
        (cell, kind, seed)
        for seed in seeds
        for cell in study.cells(settings, kinds[0])  # momentnorm has every norm that torch has
        for kind in kinds
        if cell in study.cells(settings, kind)
    ]
    for done, (cell, kind, seed) in enumerate(cells, 1):
        keys: Row = {"layers": kind, **cell, "seed": seed}
        if record.finished(keys):
            on_cell(done, len(cells), keys)
            continue
        start = time.perf_counter()
        found = study.compute(settings, cell, kind, seed, folder)
        seconds = round(time.perf_counter() - start, 3)
        row: Row = {**keys, **{name: _rounded(x) for name, x in found.items()}, "seconds": seconds}
        record.add(row)
        on_cell(done, len(cells), row)
        if should_stop() and done < len(cells):
            return False
    return True


def _rounded(value: float) -> float:
    """To six digits: what lies beyond differs from machine to machine."""
    return float(f"{value:.6g}")
