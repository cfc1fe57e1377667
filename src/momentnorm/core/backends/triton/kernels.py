"""The kernels: which program visits which tiles, and what it reads and writes.

A feature map is rows of elements in columns. Contiguous, a column is a plane, and the planes of
all samples stand side by side; LAST (channels_last), the columns of a sample are its channels, and
their elements lie ``channels`` apart. The columns of a pool of several samples go through all of
them. What is counted:

    columns   side by side: N*C or C
    channels  C
    size      elements of a plane
    rows      elements of a column: ``size``, or that times the samples of a pool
    width     channels of a pool

One launch may have more than 65,535 planes, so every grid has one dimension. One tensor may have
more than 2^31 elements, so a tile's first element is found in 64 bits, and the others from it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    activate,
    before_activation,
    coefficients,
    inverse_std,
    parameter,
    read,
    read_both,
    std,
    store_gradient,
    tile_moments,
    two_floats,
)


@triton.jit
def blocks_of(columns, width, COLUMNS: tl.constexpr, POOLED: tl.constexpr):
    """Blocks of columns side by side: pools, or as many columns as a tile has."""
    if POOLED:
        blocks = columns // width
    else:
        blocks = tl.cdiv(columns, COLUMNS)
    return blocks


@triton.jit
def columns_of(index, columns, width, COLUMNS: tl.constexpr, POOLED: tl.constexpr):
    """Of block ``index``: the samples or pools before it, its first column, and which exist."""
    local = tl.arange(0, COLUMNS)[:, None]
    blocks = blocks_of(columns, width, COLUMNS, POOLED)
    if POOLED:
        first = (index % blocks) * width
        inside = local < width
    else:
        first = (index % blocks) * COLUMNS
        inside = first + local < columns
    return (index // blocks).to(tl.int64), first, inside


@triton.jit
def tile_at(
    outer, first, start, channels, size, rows,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, FLAT: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Where the tile's first element is, and its others from there."""
    local = tl.arange(0, COLUMNS)[:, None]
    row = tl.arange(0, ROWS)[None, :]
    if LAST:
        base = (outer * rows + start) * channels + first
        offset = row * channels + local
    elif FLAT:  # all columns side by side
        base = first.to(tl.int64) * size + start
        offset = local * size + row
    else:  # rows that go through several samples
        sample = outer * (rows // size) + start // size
        base = (sample * channels + first) * size + start % size
        row = row.to(tl.int64) + start % size
        offset = (row // size) * channels * size + local * size + row % size - start % size
    return base, offset


@triton.jit
def first_of(
    x, base, inside, size, COLUMNS: tl.constexpr, POOLED: tl.constexpr, LAST: tl.constexpr
):
    """The first element of each column of a tile, or of the pool."""
    if POOLED:
        first = tl.load(x + base + tl.zeros((1, 1), tl.int32))
    else:
        local = tl.arange(0, COLUMNS)[:, None]
        if LAST == 0:
            local *= size
        first = tl.load(x + base + local, mask=inside, other=0.0)
    return first.to(tl.float32)


@triton.jit
def column_moments(
    x, outer, first, inside, begin, end, channels, size, rows, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, POOLED: tl.constexpr,
    FLAT: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Mean and variance of the rows from ``begin`` to ``end``: tiles, merged by Chan's formula."""
    row = tl.arange(0, ROWS)[None, :]
    mean = tl.zeros((1 if POOLED else COLUMNS, 1), tl.float64)
    squares = mean
    for start in range(begin, end, ROWS):
        base, offset = tile_at(outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST)
        mask = inside & (start + row < end)
        count = (tl.minimum(end - start, ROWS) * width).to(tl.float32)
        seen = ((start - begin) * width).to(tl.float32)
        values = read(x, base, offset, mask)
        origin = first_of(x, base, inside, size, COLUMNS, POOLED, LAST)
        next_mean, next_var = tile_moments(values, origin, mask, count, POOLED)
        share = count / (seen + count)
        difference = next_mean - mean
        mean += difference * share
        squares += next_var * count + difference * difference * (seen * share)
    return mean, squares / ((end - begin) * (tl.zeros((1, 1), tl.float64) + width))


@triton.jit
def normalize(
    x, y, residual, weight, bias, means, variances, eps, slope,
    columns, channels, size, rows, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, POOLED: tl.constexpr, HELD: tl.constexpr,
    FLAT: tl.constexpr, LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """One visit: a program reads its columns, or its pool, and writes them normalized.

    HELD, in one tile that stays in registers; otherwise tile after tile, twice.
    """
    index = tl.program_id(0)
    outer, first, inside = columns_of(index, columns, width, COLUMNS, POOLED)
    column = first + tl.arange(0, COLUMNS)[:, None]
    row = tl.arange(0, ROWS)[None, :]
    if HELD:
        base, offset = tile_at(outer, first, 0, channels, size, rows, COLUMNS, ROWS, FLAT, LAST)
        mask = inside & (row < rows)
        held = read(x, base, offset, mask)
        count = tl.full((1, 1), 1.0, tl.float32) * (rows * width)
        origin = first_of(x, base, inside, size, COLUMNS, POOLED, LAST)
        mean, var = tile_moments(held, origin, mask, count, POOLED)
    else:
        mean, var = column_moments(
            x, outer, first, inside, 0, rows, channels, size, rows, width,
            COLUMNS, ROWS, POOLED, FLAT, LAST,
        )  # fmt: skip
    if POOLED:
        here = index + tl.zeros((1, 1), tl.int64)
        tl.store(means + here, mean)
        tl.store(variances + here, var)
    else:
        here = outer * columns + column
        tl.store(means + here, mean, mask=inside)
        tl.store(variances + here, var, mask=inside)

    high, low = two_floats(mean)
    channel = column % channels
    scale = inverse_std(var, eps) * parameter(weight, channel, inside, 1.0)
    shift = parameter(bias, channel, inside, 0.0) - low * scale
    if HELD:
        t = before_activation(held, residual, base, offset, mask, high, scale, shift)
        tl.store(y + base + offset, activate(t, slope, ACTIVATION), mask=mask)
    else:
        for seen in range(0, rows, ROWS):
            start = (rows - 1) // ROWS * ROWS - seen  # what was read last is still in the cache
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            t = before_activation(
                read(x, base, offset, mask), residual, base, offset, mask, high, scale, shift
            )
            tl.store(y + base + offset, activate(t, slope, ACTIVATION), mask=mask)


@triton.jit
def normalize_backward(
    gradient, x, residual, weight, bias, means, variances,
    dx, dresidual, sums, dweight, dbias, eps, slope,
    columns, channels, size, rows, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, POOLED: tl.constexpr, HELD: tl.constexpr,
    FLAT: tl.constexpr, LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The backward of a visit: both sums of each column, then dx and the residual's gradient.

    The sums are of g and of ``g * z``, with z = (x - mean) / std: neither can overflow. Where a
    column is a channel's only one, its sums are that channel's dweight and dbias.
    """
    index = tl.program_id(0)
    outer, first, inside = columns_of(index, columns, width, COLUMNS, POOLED)
    column = first + tl.arange(0, COLUMNS)[:, None]
    here = outer * columns + column
    row = tl.arange(0, ROWS)[None, :]
    high, low, inverse, w, scale, shift = coefficients(
        means, variances, weight, bias, eps, here, inside, channels, 1, width, False
    )

    if HELD:
        base, offset = tile_at(outer, first, 0, channels, size, rows, COLUMNS, ROWS, FLAT, LAST)
        mask = inside & (row < rows)
        g, z = read_both(
            gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
            ACTIVATION,
        )  # fmt: skip
        plain = tl.sum(g, 1, keep_dims=True).to(tl.float64)
        weighted = tl.sum(g * z, 1, keep_dims=True).to(tl.float64)
    else:
        plain = tl.zeros((COLUMNS, 1), tl.float64)
        weighted = plain
        for start in range(0, rows, ROWS):
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            g, z = read_both(
                gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
                ACTIVATION,
            )  # fmt: skip
            plain += tl.sum(g, 1, keep_dims=True)
            weighted += tl.sum(g * z, 1, keep_dims=True)

    # Behind those of all columns are the second sums.
    outers = tl.num_programs(0) // blocks_of(columns, width, COLUMNS, POOLED)
    behind = outers.to(tl.int64) * columns
    tl.store(sums + here, plain, mask=inside)
    tl.store(sums + behind + here, weighted * std(inverse), mask=inside)
    if dweight is not None:
        store_gradient(dweight, column, weighted, inside)
        store_gradient(dbias, column, plain, inside)

    count = rows * (tl.zeros((1, 1), tl.float64) + width)
    plain_mean = plain * w / count
    weighted_mean = weighted * w / count
    if POOLED:
        plain_mean = tl.sum(tl.where(inside, plain_mean, 0.0), 0, keep_dims=True)
        weighted_mean = tl.sum(tl.where(inside, weighted_mean, 0.0), 0, keep_dims=True)
    plain_mean = plain_mean.to(tl.float32)
    weighted_mean = weighted_mean.to(tl.float32)
    if HELD:
        tl.store(dx + base + offset, inverse * (w * g - plain_mean - z * weighted_mean), mask=mask)
        if dresidual is not None:
            tl.store(dresidual + base + offset, g, mask=mask)
    else:
        for seen in range(0, rows, ROWS):
            start = (rows - 1) // ROWS * ROWS - seen
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            g, z = read_both(
                gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
                ACTIVATION,
            )  # fmt: skip
            d = inverse * (w * g - plain_mean - z * weighted_mean)
            tl.store(dx + base + offset, d, mask=mask)
            if dresidual is not None:
                tl.store(dresidual + base + offset, g, mask=mask)
