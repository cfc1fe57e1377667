"""Maps on disk between passes: one file for each map, one contiguous block for each tile."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import TilesError
from .graph import Node
from .grid import Grid
from .regions import Region, key, lengths, overlap, pixels

#: Integers that stand for numbers of each size, since NumPy has no bfloat16.
_WORDS = {
    1: (torch.uint8, np.uint8),
    2: (torch.int16, np.int16),
    4: (torch.int32, np.int32),
    8: (torch.int64, np.int64),
}


class MapStore:
    """One map on disk.

    Blocks are read through short-lived memory maps, so that they do not count as this process's
    memory; they are written by ordinary calls, since a full disk would kill a process that writes
    through a memory map.
    """

    def __init__(self, folder: Path, node: Node, grid: Grid) -> None:
        assert node.dtype is not None
        self._path = folder / f"{node.name}.map"
        self._node, self._grid = node, grid
        self._itemsize = node.dtype.itemsize
        self._torch_word, self._word = _WORDS[self._itemsize]
        self._offsets: dict[tuple[int, ...], int] = {}
        total = 0
        for index in grid.indices:
            region = grid.region(node, index)
            self._offsets[index] = total
            total += 0 if region is None else self._bytes(region)
        self._total = total

    def _bytes(self, region: Region) -> int:
        return math.prod(self._node.channels) * pixels(region) * self._itemsize

    def open(self) -> None:
        """Makes the file and takes its space on the disk, unless it is there."""
        with open(self._path, "ab") as file:
            if file.tell() != self._total and self._total:
                allocate(file.fileno(), self._total)

    def write(self, index: tuple[int, ...], tile: Tensor) -> int:
        """Writes a tile's block. Its checksum is returned."""
        data: Any = tile.cpu().contiguous().view(self._torch_word).numpy()
        with open(self._path, "r+b", buffering=0) as file:
            file.seek(self._offsets[index])
            left = memoryview(data).cast("B")
            while left:
                left = left[file.write(left) :]
        return zlib.crc32(data)

    def checksum(self, index: tuple[int, ...]) -> int | None:
        """The checksum of a tile's block as it is on disk, or None if it is not there."""
        region = self._grid.region(self._node, index)
        if region is None:
            return None
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offsets[index])
                data = file.read(self._bytes(region))
        except OSError:
            return None
        return zlib.crc32(data) if len(data) == self._bytes(region) else None

    def read(self, region: Region) -> Tensor:
        """A region of the map, put together from the blocks of all tiles that it touches."""
        shape = (*self._node.channels, *lengths(region))
        whole = np.empty(shape, dtype=self._word)
        if not self._path.exists() or os.path.getsize(self._path) < self._total:
            raise TilesError(f"{self._path} is damaged: remove its folder and start again")
        with open(self._path, "rb") as file:
            blocks = np.frombuffer(
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=self._word
            )
        for index in self._touched(region):
            block = self._grid.region(self._node, index)
            both = None if block is None else overlap(block, region)
            if block is None or both is None:
                continue
            start = self._offsets[index] // self._itemsize
            data = blocks[start : start + self._bytes(block) // self._itemsize]
            data = data.reshape(*self._node.channels, *lengths(block))
            whole[key(both, region)] = data[key(both, block)]
        assert self._node.dtype is not None
        return torch.from_numpy(whole).view(self._node.dtype)

    def _touched(self, region: Region) -> list[tuple[int, ...]]:
        axes = []
        for (start, stop), cuts in zip(region, self._grid.cuts(self._node.size), strict=True):
            first = bisect_right(cuts, start) - 1
            last = bisect_right(cuts, stop - 1) - 1
            axes.append(range(max(first, 0), min(last, len(cuts) - 2) + 1))
        return list(itertools.product(*axes))

    def remove(self) -> None:
        """Deletes the file."""
        self._path.unlink(missing_ok=True)


def allocate(file: int, size: int) -> None:
    """Takes space on the disk, so that a full disk is noticed now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)
