"""Timing: peers take turns in one process, and medians are compared."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call], budget: float = 1.0, pause: float = 0.0
) -> dict[str, float]:
    """The median seconds of each call, over rounds in which every call has its turn.

    A slow spell of the machine then falls on all of them. The order changes from round to round,
    since a call also pays for the memory that the one before it gave back to the system. Rounds
    go on for ``budget`` seconds, and at least 9 times.

    A turn is one call. With a ``pause`` it is that many seconds of sleep, a call that is not
    timed, and calls for as long as the sleep was. Then each peer finds the cache as it left it
    itself. Peers with thread pools of their own need it too: a pool's threads spin for a while
    after a call, and would take a core from the next peer.
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
        rounds = 0
        while rounds < 9 or (rounds < 500 and time.perf_counter() - start < budget):
            rounds += 1
            shuffle(order)
            for name, call in order:
                if pause:
                    time.sleep(pause)
                    call()
                turn_ends = time.perf_counter() + pause
                while True:
                    begin = time.perf_counter()
                    call()
                    end = time.perf_counter()
                    times[name].append(end - begin)
                    if end >= turn_ends:
                        break
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}
