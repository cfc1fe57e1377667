"""A run: pass after pass, tile after tile, and what has to be done again after an interruption."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..moments import Moments
from .evaluate import Small, compute, steps
from .files import Sink, Source
from .graph import Node
from .ledger import Ledger, Unit
from .moments_of import Statistics, merged, on
from .plan import Layout
from .regions import Region
from .schedule import Pass, last_use, reach
from .store import MapStore

#: Is told how many tiles are done, and of how many, all passes together.
Progress = Callable[[int, int], None]


def _give_memory_back() -> None:
    """Returns free memory to the system, where the C library can be told to.

    Tiles at borders have other sizes than those before, so free memory in between would pile up.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # a system without it
        return None


@dataclass(eq=False)
class Run:
    """One run of a layout over a source."""

    layout: Layout
    source: Source
    sink: Sink | None
    ledger: Ledger
    folder: Path  # for maps that are kept between passes
    device: torch.device
    progress: Progress | None = None
    known: dict[Node, Moments] = field(default_factory=dict)  # moments of measured maps
    statistics: dict[Node, Statistics] = field(default_factory=dict)  # by barrier
    _stores: dict[Node, MapStore] = field(default_factory=dict)

    def execute(self, passes: list[Pass]) -> Small:
        """Does what is not done yet. The values of small tensors are returned."""
        grid, indices = self.layout.grid, self.layout.grid.indices
        self._stores = {n: MapStore(self.folder, n, grid) for one in passes for n in one.stored}
        missing = self._missing(passes)
        total = sum(len(tiles) for tiles in missing.values())
        done = 0
        last = last_use(passes)
        small = Small(self.layout.graph)
        for one in passes:
            small.update(one.number - 1, self.statistics)
            if missing[one.number]:
                for node in one.stored:
                    self._stores[node].open()
            for tile in missing[one.number]:
                self.ledger.add(one.number, tile, self._tile(one, indices[tile], small))
                done += 1
                if self.progress is not None:
                    self.progress(done, total)
            self._merge(one)
            for node, store in self._stores.items():
                if last.get(node, 0) == one.number:
                    store.remove()
        small.update(self.layout.graph.levels, self.statistics)
        return small

    def _missing(self, passes: list[Pass]) -> dict[int, list[int]]:
        """The tiles of each pass that are to be done.

        Tiles are missing that the ledger does not have, whose output is not what was written, or
        whose stored maps are damaged while a later pass still has to read them.
        """
        indices = self.layout.grid.indices
        units = self.ledger.units
        missing = {
            one.number: {i for i in range(len(indices)) if (one.number, i) not in units}
            for one in passes
        }
        for one in reversed(passes):
            if one.output is not None:
                for i, index in enumerate(indices):
                    if i not in missing[one.number] and not self._is_written(one, i, index):
                        missing[one.number].add(i)
            if not missing[one.number]:
                continue
            for node in reach(one.targets, one.given)[1] & set(self._stores):
                writer = next(other for other in passes if node in other.stored)
                place = writer.stored.index(node)
                for i, index in enumerate(indices):
                    if i in missing[writer.number]:
                        continue
                    if units[writer.number, i].stored[place] != self._stores[node].checksum(index):
                        missing[writer.number].add(i)
        return {number: sorted(tiles) for number, tiles in missing.items()}

    def _is_written(self, one: Pass, tile: int, index: tuple[int, ...]) -> bool:
        assert self.sink is not None
        assert one.output is not None
        region = self.layout.grid.region(one.output, index)
        return region is None or (
            self.ledger.units[one.number, tile].output == self.sink.checksum(region)
        )

    def _tile(self, one: Pass, index: tuple[int, ...], small: Small) -> Unit:
        unit = Unit([None] * len(one.measured), [None] * len(one.stored))
        targets = {}
        for node in one.targets:
            region = self.layout.grid.region(node, index)
            if region is not None:
                targets[node] = region

        def emit(node: Node, value: Tensor) -> None:
            if node in one.measured:
                unit.moments[one.measured.index(node)] = Moments.of(value)
            if node in one.stored:
                unit.stored[one.stored.index(node)] = self._stores[node].write(index, value)
            if node is one.output:
                assert self.sink is not None
                unit.output = self.sink.write(targets[node], value)

        todo = steps(self.layout.graph, targets, one.given)
        compute(todo, targets, small, self.statistics, self._read, emit)
        _give_memory_back()
        return unit

    def _read(self, node: Node, region: Region) -> Tensor:
        if node is self.layout.graph.image:
            assert node.dtype is not None
            return self.source.read(region, node.dtype, self.device)
        return self._stores[node].read(region).to(self.device)

    def _merge(self, one: Pass) -> None:
        """Merges the moments of a pass over its tiles, always in the tiles' order."""
        count = len(self.layout.grid.indices)
        for place, node in enumerate(one.measured):
            parts = [self.ledger.units[one.number, i].moments[place] for i in range(count)]
            self.known[node] = on(merged(parts), self.device)
        self.use(self.known)

    def use(self, known: dict[Node, Moments]) -> None:
        """Takes the moments of maps as known."""
        self.known = known
        for barrier in self.layout.graph.barriers:
            assert barrier.rule is not None
            measured = barrier.rule.measured(barrier)
            if measured in known:
                self.statistics[barrier] = Statistics(known[measured])
