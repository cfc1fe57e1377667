"""Timing: peers take turns in one process, and medians are compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def interleaved(calls: Mapping[str, Call], budget: float = 1.0) -> dict[str, float]:
    """The median seconds of each call, over rounds in which every call has its turn.

    A slow spell of the machine then falls on all of them. Rounds go on for ``budget`` seconds, and
    at least 9 times.
    """
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
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def geometric_mean(values: list[float]) -> float:
    return statistics.geometric_mean(values)
