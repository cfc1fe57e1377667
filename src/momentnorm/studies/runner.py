"""Compute the cells of a study that are not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import StudyError
from .record import Record, conditions
from .results import Row
from .study import AnyStudy

#: How many there are unless told otherwise: 0, 1, 2.
SEEDS = 3

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
        layers: "momentnorm" or "torch"; the other's rows stay.
        restart: drop what is there.
        on_cell: told of each cell, those that were there included.
        should_stop: asked after each cell that was computed.

    Returns:
        Whether it is finished.

    Raises:
        StudyError: layers that the study cannot be run with, or results made otherwise.
    """
    if layers not in study.kinds:
        raise StudyError(
            f"{study.name} cannot be run with the layers of {layers}, which lack what it is about; "
            f"use --layers {' or '.join(study.kinds)}"
        )
    settings = {"quick": study.quick, "full": study.full}[setting]
    record = Record(folder, study.name, conditions(setting, settings), restart)
    # Seed by seed: a study that is stopped early has whole comparisons of the first seeds.
    cells = [
        (cell, seed, {"layers": layers, **cell, "seed": seed})
        for seed in seeds
        for cell in study.cells(settings, layers)
    ]
    for done, (cell, seed, keys) in enumerate(cells, 1):
        if record.finished(keys):
            on_cell(done, len(cells), keys)
            continue
        start = time.perf_counter()
        found = study.compute(settings, cell, layers, seed, folder)
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
