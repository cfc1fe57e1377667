"""Runner: compute the cells of a study that have no results yet."""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from .errors import StudyError
from .layers import KINDS
from .record import THREADS, Record, claimed, conditions
from .results import Row
from .study import AnyStudy

#: Default number of seeds: 0, 1, 2.
SEEDS = 3

#: Name of all kinds of layers together.
BOTH = "both"

#: Function called after each cell with the number of finished cells, of all cells, and the row.
OnCell = Callable[[int, int, Row], None]

#: Function that computes the figures of one cell.
Work = Callable[[], dict[str, float]]


def run(
    study: AnyStudy,
    folder: Path,
    *,
    setting: str = "quick",
    seeds: Sequence[int] = range(SEEDS),
    layers: str = "momentnorm",
    restart: bool = False,
    jobs: int = 1,
    on_cell: OnCell = lambda done, total, row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run a study, or continue it: cells that have a row in the CSV are not computed again.

    Args:
        study: one of :data:`STUDIES`.
        folder: place of ``NAME.csv``, with a row for each finished cell, and of ``NAME.json``, with
            the conditions under which they were computed.
        setting: "quick" or "full".
        seeds: seeds of each cell. A later run may add some.
        layers: "momentnorm", "torch", or "both". Both take turns cell by cell, so that other load
            of the machine slows them alike. Rows of other layers stay.
        restart: delete earlier results first.
        jobs: number of cells to compute at a time, each by one thread of its own process. With 1,
            this process computes them. The figures do not depend on it.
        on_cell: function that is called with each cell, also with those that have a row already.
        should_stop: function that is asked after each computed cell. Running cells are finished.

    Returns:
        True if all cells are finished.

    Raises:
        StudyError: the study has no such layers, the results were made under other conditions,
            another run is writing into the folder, or a process was killed.
        UserError: a file cannot be written.
    """
    kinds = tuple(KINDS) if layers == BOTH else (layers,)
    for kind in kinds:
        if kind not in study.kinds:
            raise StudyError(
                f"{study.name} needs layers that {kind} does not have; "
                f"use --layers {' or '.join(study.kinds)}"
            )
    settings = {"quick": study.quick, "full": study.full}[setting]
    # Seeds are the outer loop, so a study that is stopped early has all cells of a few seeds.
    work: list[tuple[Row, Work]] = [
        (
            {"layers": kind, **cell, "seed": seed},
            functools.partial(study.compute, settings, cell, kind, seed, folder),
        )
        for seed in seeds
        for cell in study.cells(settings, kinds[0])  # momentnorm has every norm that torch has
        for kind in kinds
        if cell in study.cells(settings, kind)
    ]
    plan = [keys for keys, _ in work]
    with claimed(folder, study):
        record = Record(folder, study, conditions(setting, settings), plan, restart)
        missing = {
            i: compute for i, (keys, compute) in enumerate(work) if not record.finished(keys)
        }
        done = 0
        for i, keys in enumerate(plan):
            if i not in missing:
                done += 1
                on_cell(done, len(plan), keys)
        for i, found in _computed(missing, jobs, should_stop):
            row = {**plan[i], **found}
            record.add(row)
            done += 1
            on_cell(done, len(plan), row)
        return done == len(plan)


def _computed(
    work: dict[int, Work], jobs: int, should_stop: Callable[[], bool]
) -> Iterator[tuple[int, Row]]:
    """Compute the work, and give each key with its row as soon as it is finished."""
    if min(jobs, len(work)) <= 1:
        for key, compute in work.items():
            yield key, _measured(compute)
            if should_stop():
                return
        return
    waiting = collections.deque(work.items())
    running: dict[Future[Row], int] = {}
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, spawn, initializer=_end_with_parent) as pool:
        try:
            while True:
                while waiting and len(running) < jobs and not should_stop():
                    key, compute = waiting.popleft()
                    with _interrupts_blocked():  # the new process keeps the block
                        running[pool.submit(_measured, compute)] = key
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise StudyError(
                "a process was killed, perhaps because memory ran out; run the same command again "
                "with fewer --jobs, and it continues after the last finished cell"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C. It arrives at the end of the block if it was pressed inside."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process when its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _measured(compute: Work) -> Row:
    """Figures of one cell, computed with :data:`THREADS` threads, and its seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        start = time.perf_counter()
        found = compute()
        seconds = round(time.perf_counter() - start, 3)
    finally:
        torch.set_num_threads(before)
    return {**{name: _rounded(x) for name, x in found.items()}, "seconds": seconds}


def _rounded(value: float) -> float:
    """Value rounded to six digits. Further digits differ from machine to machine."""
    return float(f"{value:.6g}")
