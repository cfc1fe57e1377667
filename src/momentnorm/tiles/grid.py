"""The tiles: one partition that all maps of a model share, each at its own resolution."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from .graph import Graph, Node
from .regions import Region, lengths


@dataclass(eq=False)
class Grid:
    """Tiles of ``tile`` pixels, cut on the larger of image and output.

    The cuts of every other map lie at the same fractions of its axes, so each map's pixels are in
    one tile each, whatever its resolution. A tile may hold no pixel of a small map.
    """

    size: tuple[int, ...]  # of the map that is cut
    tile: tuple[int, ...]
    _cuts: dict[tuple[int, ...], list[list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, tile: tuple[int, ...]) -> Grid:
        """The grid for a model's graph."""
        return cls(reference(graph), tile)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(-(-n // t) for n, t in zip(self.size, self.tile, strict=True))

    @property
    def indices(self) -> list[tuple[int, ...]]:
        """The tiles, in rows."""
        return list(itertools.product(*(range(n) for n in self.counts)))

    def cuts(self, size: tuple[int, ...]) -> list[list[int]]:
        """Where each axis of a map of this size is cut, both ends included."""
        if size not in self._cuts:
            self._cuts[size] = [
                [min(i * tile, whole) * length // whole for i in range(count + 1)]
                for tile, whole, count, length in zip(
                    self.tile, self.size, self.counts, size, strict=True
                )
            ]
        return self._cuts[size]

    def region(self, node: Node, index: tuple[int, ...]) -> Region | None:
        """The part of a map in a tile, or None if there is no pixel of it."""
        cuts = self.cuts(node.size)
        region = tuple((cuts[d][i], cuts[d][i + 1]) for d, i in enumerate(index))
        return region if all(lengths(region)) else None


def reference(graph: Graph) -> tuple[int, ...]:
    """The size of the larger of image and output."""
    sizes = [graph.image.size]
    if graph.output.is_map:
        sizes.append(graph.output.size)
    return tuple(max(axis) for axis in zip(*sizes, strict=True))
