"""Timing: peers take turns in one process, and medians are compared."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def interleaved(calls: Mapping[str, Call], budget: float = 1.0) -> dict[str, float]:
    """The median seconds of each call, over rounds in which every call has its turn.

    A slow spell of the machine then falls on all of them. The order changes from round to round,
    since a call also pays for the memory that the one before it gave back to the system. Rounds
    go on for ``budget`` seconds, and at least 9 times.
    """
    order = list(calls.items())
    shuffle = random.Random(0).shuffle
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while len(times[next(iter(times))]) < 9 or (
            time.perf_counter() - start < budget and len(times[next(iter(times))]) < 500
        ):
            shuffle(order)
            for name, call in order:
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}
