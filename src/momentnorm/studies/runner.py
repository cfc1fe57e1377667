"""Compute the cells of a study that are not there yet."""

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
    jobs: int = 1,
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
        jobs: how many cells to compute at a time, each by one thread of a process of its own (with
            1, of this process); the figures do not depend on it.
        on_cell: told of each cell, those that were there included.
        should_stop: asked after each cell that was computed; those under way are finished.

    Returns:
        Whether it is finished.

    Raises:
        StudyError: layers that the study cannot be run with, results made otherwise, another run
            into the same folder, or a process that was ended from outside.
    """
    kinds = tuple(KINDS) if layers == BOTH else (layers,)
    for kind in kinds:
        if kind not in study.kinds:
            raise StudyError(
                f"{study.name} cannot be run with the layers of {kind}, which lack what it is "
                f"about; use --layers {' or '.join(study.kinds)}"
            )
    settings = {"quick": study.quick, "full": study.full}[setting]
    work: list[tuple[Row, Work]] = [
        (
            {"layers": kind, **cell, "seed": seed},
            functools.partial(study.compute, settings, cell, kind, seed, folder),
        )
        for seed in seeds  # first: a study that is stopped early has whole comparisons of a few
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


#: Computes one cell.
Work = Callable[[], dict[str, float]]


def _computed(
    work: dict[int, Work], jobs: int, should_stop: Callable[[], bool]
) -> Iterator[tuple[int, Row]]:
    """The results under the keys of the work, as they are finished."""
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
                    with _interrupts_blocked():  # in the processes that this starts, for good
                        running[pool.submit(_measured, compute)] = key
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise StudyError(
                "a process was ended from outside, for want of memory perhaps; the same command "
                "goes on where it was, and with fewer --jobs it takes less"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is for the parent alone, which gets it afterwards if it comes meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _measured(compute: Work) -> Row:
    """One cell's figures and seconds."""
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
    """To six digits: what lies beyond differs from machine to machine."""
    return float(f"{value:.6g}")
