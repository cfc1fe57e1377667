"""Launches: the split of a call into programs, and the calls of compiled kernels."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernels, pieces

#: Elements of the largest tile that stays in registers between the moments and the output.
HELD = 16384
#: Elements of a tile where a program reads its columns twice.
REPEATED = 8192
#: Bytes of a tile, and most tiles of a chunk, where planes are cut.
PIECE, PIECES = 16384, 16
#: Chunks grow from one tile only when there are more programs than this.
PROGRAMS = 4096
#: Visits that each multiprocessor needs to be busy.
BUSY = 2
#: Threads of a warp, or of a wavefront of ROCm.
THREADS = 64 if torch.version.hip else 32
#: Bytes of the smallest access to memory, and of the best one.
SECTOR, LINE = 32, 128
#: Options of the compiler. a * b + c has one rounding, whatever Triton's default is.
OPTIONS = {"enable_fp_fusion": True}


class Grid(NamedTuple):
    """Sizes and device that a launch depends on, beside its operands and their types."""

    samples: int
    channels: int
    size: int
    last: bool
    itemsize: int
    device: int  # -1 for the interpreter


def _power(number: int) -> int:
    """Smallest power of two >= number."""
    return 1 << (number - 1).bit_length()


def _warps(elements: int, itemsize: int = 4) -> int:
    """Number of warps: a thread for each 64 bytes, and at most 512 threads."""
    return min(max(elements * itemsize // (64 * THREADS), 1), 512 // THREADS)


@functools.cache
def multiprocessors(device: int) -> int:
    if device < 0:
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class Launch:
    """A kernel with its grid and sizes, to be called with tensors and floats.

    The first call lets Triton compile the kernel or find it. Later calls with operands of equal
    types and aligned pointers launch that kernel directly, since Triton would find it again.
    """

    __slots__ = ("compiled", "constants", "device", "grid", "kernel", "numbers", "warps")

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: tuple[int, ...],
        constants: tuple[Any, ...],
        warps: int,
        device: int,
    ) -> None:
        self.kernel, self.grid = kernel, (programs, 1, 1)
        self.numbers, self.constants = numbers, constants
        self.warps, self.device = warps, device
        #: Compiled kernels by the types of the operands.
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *operands: Tensor | float | None) -> None:
        if self.device >= 0 and self.device != torch.cuda.current_device():
            with torch.cuda.device(self.device):
                self(*operands)
            return
        types: list[Any] = []
        addresses = 0
        for operand in operands:
            if isinstance(operand, Tensor):
                addresses |= operand.data_ptr()
                types.append(operand.dtype)
            else:
                types.append(operand is None)
        key = tuple(types)
        found = self.compiled.get(key)
        if found is not None and not addresses % 16:
            found[self.grid](*operands, *self.numbers, *self.constants)
            return
        found = self.kernel[self.grid](
            *operands,
            *self.numbers,
            *self.constants,
            num_warps=self.warps,
            **OPTIONS,
        )
        if found is not None and not addresses % 16:  # the interpreter compiles nothing
            self.compiled[key] = found


@functools.lru_cache(maxsize=4096)
def visit(
    grid: Grid, samples: int, width: int, activation: str, backward: bool, processors: int
) -> Launch | None:
    """A visit of each pool of ``samples`` times ``width`` planes, or None where pools are cut."""
    aside = grid.last or samples > 1  # columns of different samples are not side by side
    columns = grid.channels if aside else grid.samples * grid.channels
    outers = grid.samples // samples if aside else 1
    rows, pooled = samples * grid.size, width > 1
    tile_rows = _power(rows)
    if pooled:
        tile_columns = _power(width)
    elif grid.last:
        tile_columns = 2 * SECTOR // grid.itemsize
        if tile_columns * tile_rows > HELD // 2:
            tile_columns //= 2
    else:
        tile_columns = max(1024 // tile_rows, 1)
    if not pooled:
        tile_columns = min(tile_columns, _power(columns))
    # With columns side by side, a thread holds values of several, and has less room for elements.
    held = tile_columns * tile_rows <= (HELD // 2 if grid.last else HELD)
    if not held:
        if grid.last and not pooled:
            tile_columns = min(LINE // grid.itemsize, _power(columns))
        tile_rows = REPEATED // tile_columns
    programs = outers * math.ceil(columns / (width if pooled else tile_columns))
    if not held:
        # Bytes of a pool side by side in a tile. Below a line, neighbours would fetch it again.
        together = (width if grid.last else tile_rows) * grid.itemsize
        if programs < BUSY * processors or (pooled and together < LINE):
            return None
    return Launch(
        kernels.normalize_backward if backward else kernels.normalize,
        programs,
        (columns, grid.channels, grid.size, rows, width),
        (
            tile_columns,
            tile_rows,
            pooled,
            held,
            grid.last or samples == 1,
            grid.last,
            activation,
        ),
        _warps(tile_columns * tile_rows, grid.itemsize),
        grid.device,
    )


class Cut(NamedTuple):
    """Chunks of the planes of a grid. They depend on its shape alone."""

    columns: int
    tile: tuple[int, int]  # columns and rows
    blocks: int  # tiles next to each other, of all samples
    chunk: int  # rows that one program reduces
    chunks: int


@functools.lru_cache(maxsize=4096)
def cut(grid: Grid) -> Cut:
    size, elements = grid.size, PIECE // grid.itemsize
    if grid.last:
        columns = grid.channels
        across = min(LINE // grid.itemsize, _power(columns))
        rows = min(elements // across, _power(size))
        blocks = grid.samples * math.ceil(columns / across)
    else:
        columns = grid.samples * grid.channels
        rows = min(elements, _power(size))
        across = min(elements // rows, _power(columns))
        blocks = math.ceil(columns / across)
    tiles = blocks * math.ceil(size / rows)
    chunk = rows * min(max(tiles // PROGRAMS, 1), PIECES)
    return Cut(columns, (across, rows), blocks, chunk, math.ceil(size / chunk))


@functools.lru_cache(maxsize=4096)
def piece(
    kernel: str,
    grid: Grid,
    samples: int = 1,
    width: int = 1,
    activation: str = "",
    given: bool = False,
) -> Launch:
    """A kernel of ``pieces``, for pools of ``samples`` times ``width`` planes."""
    columns, tile, blocks, chunk, chunks = cut(grid)
    planes, pool = grid.samples * grid.channels, (samples, width)
    tiles = math.ceil(grid.size / tile[1])
    size = (grid.channels, grid.size)
    numbers: tuple[int, ...]
    constants: tuple[Any, ...]
    if kernel == "merge_moments":
        programs = planes // (samples * width)
        numbers = (*size, chunk, chunks, *pool)
        constants = (min(_power(samples * width * chunks), 2048),)
        warps = _warps(constants[0])
    elif kernel == "merge_sums":
        programs = planes // (samples * width)
        numbers = (*size, chunks, *pool, planes)
        parts = min(_power(chunks), 1024)
        constants = (min(_power(samples * width), 1024 // parts), parts)
        warps = _warps(math.prod(constants))
    else:
        programs, numbers, constants = {
            "partial_moments": (blocks * chunks, (chunk, chunks), ()),
            "partial_sums": (
                blocks * chunks, (chunk, chunks, *pool, planes), (given, activation)
            ),
            "apply": (blocks * tiles, (tiles, *pool), (given, activation)),
            "apply_gradient": (blocks * tiles, (tiles, *pool), (given, activation)),
        }[kernel]  # fmt: skip
        numbers = (columns, *size, *numbers)
        constants = (*tile, grid.last, *constants)
        warps = _warps(math.prod(tile), grid.itemsize)
    return Launch(getattr(pieces, kernel), programs, numbers, constants, warps, grid.device)


@functools.lru_cache(maxsize=4096)
def parameter_gradients(
    outers: int, channels: int, samples: int, width: int, device: int
) -> Launch:
    columns = min(_power(channels), 32)
    rows = min(_power(outers), 64)
    return Launch(
        pieces.parameter_gradients,
        math.ceil(channels / columns),
        (outers, channels, samples, width),
        (columns, rows),
        _warps(columns * rows),
        device,
    )
