"""TIFF files that are read and written region by region, by tifffile (extra ``[tiles]``)."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from .errors import TilesError
from .store import allocate

#: Bytes of decoded tiles and strips that are kept for neighbours.
CACHE = 64_000_000


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise TilesError("TIFF files need tifffile: pip install 'momentnorm[tiles]'") from error
    return tifffile


class TiffFile:
    """The first page of a TIFF file as an array (C, H, W)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        tifffile = _tifffile()
        try:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0].aspage()
                is_one_block = not page.is_tiled and bool(page.is_memmappable)
        except (tifffile.TiffFileError, OSError, ValueError, IndexError) as error:
            raise TilesError(f"{path} is damaged or is no TIFF file: {error}") from error
        if page.axes not in ("YX", "YXS", "SYX"):
            raise TilesError(f"{path} has axes {page.axes}; an image has YX, YXS or SYX")
        self._page = page
        self._axes: str = page.axes
        self._is_plain = page.compression == 1 and page.predictor == 1
        self._byteorder = page.parent.byteorder
        shape = dict(zip(page.axes, page.shape, strict=True))
        self.shape: tuple[int, ...] = (shape.get("S", 1), shape["Y"], shape["X"])
        self.dtype = np.dtype(page.dtype)
        self._chunk = (page.tilelength, page.tilewidth) if page.is_tiled else _strip(page)
        self._across = -(-self.shape[2] // self._chunk[1])
        self._down = -(-self.shape[1] // self._chunk[0])
        self._cache: OrderedDict[int, Any] = OrderedDict()
        # One block of numbers, as cameras and tifffile.memmap write it: no strip has to be decoded.
        self._is_one_block = is_one_block

    def __getitem__(self, key: tuple[slice, ...]) -> Any:
        _, rows, columns = key
        if self._is_one_block:
            return self._from_block(rows, columns)
        shape = (self.shape[0], rows.stop - rows.start, columns.stop - columns.start)
        out = np.empty(shape, dtype=self.dtype)
        planes = self.shape[0] if self._axes == "SYX" else 1
        for plane in range(planes):
            target = out[plane : plane + 1] if self._axes == "SYX" else out
            for i, top, j, left in self._chunks(rows, columns):
                chunk = self._decoded((plane * self._down + i) * self._across + j)
                _copy(chunk, (top, left), target, (rows.start, columns.start))
        return out

    def _from_block(self, rows: slice, columns: slice) -> Any:
        page = self._page
        end = page.dataoffsets[0] + page.nbytes
        if os.path.getsize(self._path) < end:
            raise TilesError(f"{self._path} is cut off: it should have {end} bytes")
        dtype = self.dtype.newbyteorder(self._byteorder)
        block = np.memmap(self._path, dtype, "r", page.dataoffsets[0], page.shape)
        if self._axes == "SYX":
            return np.array(block[:, rows, columns], dtype=self.dtype)
        part = block.reshape(*block.shape[:2], -1)[rows, columns]
        return np.array(part.transpose(2, 0, 1), dtype=self.dtype)

    def __setitem__(self, key: tuple[slice, ...], value: Any) -> None:
        if not self._is_plain or not self._page.is_tiled or self._axes != "YXS":
            raise TilesError(
                f"{self._path} was not made by momentnorm: it cannot be written in parts"
            )
        _, rows, columns = key
        value = np.asarray(value)
        with open(self._path, "r+b", buffering=0) as file:
            for i, top, j, left in self._chunks(rows, columns):
                number = i * self._across + j
                chunk = self._decoded(number).copy()
                _copy(value, (rows.start, columns.start), chunk, (top, left))
                self._cache.pop(number, None)
                data = chunk.transpose(1, 2, 0).astype(self.dtype.newbyteorder(self._byteorder))
                file.seek(self._page.dataoffsets[number])
                left_over = memoryview(data.tobytes())
                while left_over:
                    left_over = left_over[file.write(left_over) :]

    def _chunks(self, rows: slice, columns: slice) -> list[tuple[int, int, int, int]]:
        """Tiles or strips that a region touches: row number, first row, column number, first
        column."""
        height, width = self._chunk
        return [
            (i, i * height, j, j * width)
            for i in range(rows.start // height, -(-rows.stop // height))
            for j in range(columns.start // width, -(-columns.stop // width))
        ]

    def _decoded(self, number: int) -> Any:
        """A tile or strip, (C, height, width); those at the border may be padded."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        page = self._page
        offset, length = page.dataoffsets[number], page.databytecounts[number]
        with open(self._path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise TilesError(
                f"{self._path} is cut off: tile {number} ends at byte {offset + length}, the file "
                f"at {os.path.getsize(self._path)}"
            )
        if self._is_plain and page.is_tiled and page.bitspersample == 8 * self.dtype.itemsize:
            chunk = np.frombuffer(data, self.dtype.newbyteorder(self._byteorder))
            chunk = chunk.reshape(*self._chunk, -1).astype(self.dtype)
        else:
            decoded = page.decode(data, number)[0]
            if decoded is None:
                chunk = np.zeros((*self._chunk, self.shape[0]), self.dtype)
            else:
                chunk = decoded[0]
        chunk = chunk.transpose(2, 0, 1)
        self._cache[number] = chunk
        while sum(one.nbytes for one in self._cache.values()) > CACHE and len(self._cache) > 1:
            self._cache.popitem(last=False)
        return chunk


def _strip(page: Any) -> tuple[int, int]:
    return int(page.rowsperstrip), int(page.imagewidth)


def _copy(source: Any, at: tuple[int, int], target: Any, to: tuple[int, int]) -> None:
    """Copies what two pieces (C, H, W) of one image have in common; ``at`` and ``to`` are their
    first pixels."""
    key_from, key_to = [slice(None)], [slice(None)]
    for axis in range(2):
        start = max(at[axis], to[axis])
        stop = min(at[axis] + source.shape[1 + axis], to[axis] + target.shape[1 + axis])
        key_from.append(slice(start - at[axis], stop - at[axis]))
        key_to.append(slice(start - to[axis], stop - to[axis]))
    target[tuple(key_to)] = source[tuple(key_from)]


def make(path: Path, shape: tuple[int, ...], dtype: Any, tile: tuple[int, ...]) -> None:
    """A tiled BigTIFF of zeros, without compression, that has its space on the disk."""
    if len(shape) != 4 or shape[0] != 1:
        raise TilesError(f"a TIFF holds one image (1, C, H, W), not {shape}; use .npy or an array")
    tifffile = _tifffile()
    _, channels, height, width = shape
    # TIFF wants multiples of 16. Tiles of the run should be whole numbers of tiles of the file.
    side = next((n for n in (512, 256, 128, 64, 32, 16) if all(t % n == 0 for t in tile)), 256)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            None,
            shape=(height, width, channels),
            dtype=dtype,
            tile=(side, side),
            photometric="rgb" if channels == 3 else "minisblack",
            planarconfig="contig",
            metadata=None,
        )
    with open(path, "r+b") as file:
        allocate(file.fileno(), os.path.getsize(path))
