"""Kernels that visit whole pools: the programs, their tiles, and their memory accesses.

A feature map has columns of elements. In a contiguous one, a column is a plane, and the planes of
all samples are side by side. With LAST (channels_last), the columns of a sample are its channels,
and the elements of a column are ``channels`` apart in memory. In a pool of several samples a column
continues through all of them. Sizes:

    columns   number of columns side by side: N*C or C
    channels  C
    size      elements of a plane
    rows      elements of a column: ``size``, or ``size`` times the samples of a pool
    width     channels of a pool

One launch may have more than 65,535 planes, so every grid has one dimension. One tensor may have
more than 2^31 elements, so the offset of a tile's first element has 64 bits. The other offsets are
relative to it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    activate,
    coefficients,
    inverse_std,
    parameter,
    pre_activation,
    read,
    read_both,
    std,
    store_gradient,
    tile_moments,
    two_floats,
)


@triton.jit
def blocks_of(columns, width, COLUMNS: tl.constexpr, POOLED: tl.constexpr):
    """Number of blocks of columns side by side. A block is a pool, or the columns of a tile."""
    if POOLED:
        blocks = columns // width
    else:
        blocks = tl.cdiv(columns, COLUMNS)
    return blocks


@triton.jit
def columns_of(index, columns, width, COLUMNS: tl.constexpr, POOLED: tl.constexpr):
    """Columns of block ``index``: the samples or pools before it, the first column, and a mask."""
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
    """Offset of the tile's first element, and offsets of all its elements from there."""
    local = tl.arange(0, COLUMNS)[:, None]
    row = tl.arange(0, ROWS)[None, :]
    if LAST:
        base = (outer * rows + start) * channels + first
        offset = row * channels + local
    elif FLAT:  # all columns are side by side
        base = first.to(tl.int64) * size + start
        offset = local * size + row
    else:  # columns continue through several samples
        sample = outer * (rows // size) + start // size
        base = (sample * channels + first) * size + start % size
        row = row.to(tl.int64) + start % size
        offset = (row // size) * channels * size + local * size + row % size - start % size
    return base, offset


@triton.jit
def first_of(
    x, base, inside, size, COLUMNS: tl.constexpr, POOLED: tl.constexpr, LAST: tl.constexpr
):
    """First element of each column of a tile, or with POOLED of the tile."""
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
    """Mean and variance of the rows from ``begin`` to ``end``. Tiles merge by Chan's formula."""
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
    """The forward of a visit: a program reads its columns, or its pool, and writes them normalized.

    With HELD one tile stays in registers. Otherwise the program reads its tiles twice.
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
        t = pre_activation(held, residual, base, offset, mask, high, scale, shift)
        tl.store(y + base + offset, activate(t, slope, ACTIVATION), mask=mask)
    else:
        for seen in range(0, rows, ROWS):
            start = (rows - 1) // ROWS * ROWS - seen  # the tiles read last are still in the cache
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            t = pre_activation(
                read(x, base, offset, mask), residual, base, offset, mask, high, scale, shift
            )
            tl.store(y + base + offset, activate(t, slope, ACTIVATION), mask=mask)


@triton.jit
def normalize_backward(
    gradient, x, residual, weight, bias, means, variances,
    dx, residual_gradient, sums, dweight, dbias, eps, slope,
    columns, channels, size, rows, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, POOLED: tl.constexpr, HELD: tl.constexpr,
    FLAT: tl.constexpr, LAST: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The backward of a visit: two sums of each column, then dx and residual_gradient.

    The sums are of g and ``g * x_hat``, where g is pre_activation_gradient. Neither overflows. If
    each channel has one column, its sums are dweight and dbias.
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
        g, x_hat = read_both(
            gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
            ACTIVATION,
        )  # fmt: skip
        plain = tl.sum(g, 1, keep_dims=True).to(tl.float64)
        weighted = tl.sum(g * x_hat, 1, keep_dims=True).to(tl.float64)
    else:
        plain = tl.zeros((COLUMNS, 1), tl.float64)
        weighted = plain
        for start in range(0, rows, ROWS):
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            g, x_hat = read_both(
                gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
                ACTIVATION,
            )  # fmt: skip
            plain += tl.sum(g, 1, keep_dims=True)
            weighted += tl.sum(g * x_hat, 1, keep_dims=True)

    # The second sums follow the first sums of all columns.
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
        tl.store(
            dx + base + offset, inverse * (w * g - plain_mean - x_hat * weighted_mean), mask=mask
        )
        if residual_gradient is not None:
            tl.store(residual_gradient + base + offset, g, mask=mask)
    else:
        for seen in range(0, rows, ROWS):
            start = (rows - 1) // ROWS * ROWS - seen
            base, offset = tile_at(
                outer, first, start, channels, size, rows, COLUMNS, ROWS, FLAT, LAST
            )
            mask = inside & (start + row < rows)
            g, x_hat = read_both(
                gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
                ACTIVATION,
            )  # fmt: skip
            d = inverse * (w * g - plain_mean - x_hat * weighted_mean)
            tl.store(dx + base + offset, d, mask=mask)
            if residual_gradient is not None:
                tl.store(residual_gradient + base + offset, g, mask=mask)
