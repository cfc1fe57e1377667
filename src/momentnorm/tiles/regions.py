"""Intervals and regions: which pixels of a map are meant.

An interval is a pair (start, stop) along one axis, stop excluded. A region is one interval for each
spatial axis of a map.
"""

from __future__ import annotations

import math
from typing import Any

Interval = tuple[int, int]
Region = tuple[Interval, ...]


def whole(size: tuple[int, ...]) -> Region:
    """The region of all pixels of a map of this size."""
    return tuple((0, length) for length in size)


def lengths(region: Region) -> tuple[int, ...]:
    """Number of pixels along each axis."""
    return tuple(stop - start for start, stop in region)


def pixels(region: Region) -> int:
    """Number of pixels."""
    return math.prod(lengths(region))


def hull(one: Region, other: Region) -> Region:
    """Smallest region that holds both."""
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def clipped(interval: Interval, length: int) -> Interval:
    """The part of an interval that lies in an axis of this length, at least one pixel of it."""
    start = min(max(interval[0], 0), length - 1)
    return start, max(min(interval[1], length), start + 1)


def key(region: Region, inside: Region) -> tuple[Any, ...]:
    """The index that cuts ``region`` out of an array (..., *S) that holds ``inside``."""
    cuts = (slice(a - c, b - c) for (a, b), (c, _) in zip(region, inside, strict=True))
    return (..., *cuts)


def overlap(one: Region, other: Region) -> Region | None:
    """The pixels of both regions, or None if there are none."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(start < stop for start, stop in both) else None


def text(region: Region) -> str:
    """A region as users know it: ``[0:512, 512:1024]``."""
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in region) + "]"
