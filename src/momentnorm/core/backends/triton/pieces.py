"""Kernels that cut planes into chunks, for pools too large for one program.

A program reduces a chunk of each of its columns to two numbers. A second kernel adds the numbers of
a pool in a fixed order. A third kernel maps the tiles. A column is a plane here, and its number
determines its pool.
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
)
from .kernels import column_moments, columns_of, tile_at


@triton.jit
def _piece(chunks, columns, COLUMNS: tl.constexpr, LAST: tl.constexpr, AGAIN: tl.constexpr):
    """Chunk of this program, and its columns as from ``columns_of``, and their planes."""
    program = tl.program_id(0)
    if AGAIN:  # in reverse, since the tiles read last are still in the cache
        program = tl.num_programs(0) - 1 - program
    if LAST:  # neighbours in memory are read at the same time
        blocks = tl.cdiv(columns, COLUMNS)
        rest = program // blocks
        chunk = rest % chunks
        index = (rest // chunks) * blocks + program % blocks
    else:
        chunk = program % chunks
        index = program // chunks
    outer, first, inside = columns_of(index, columns, 1, COLUMNS, False)
    plane = (outer * columns + first).to(tl.int32) + tl.arange(0, COLUMNS)[:, None]
    return chunk.to(tl.int64), outer, first, inside, plane


@triton.jit
def partial_moments(
    x, means, variances, columns, channels, size, chunk, chunks,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each chunk of each plane, (planes, chunks)."""
    part, outer, first, inside, plane = _piece(chunks, columns, COLUMNS, LAST, False)
    begin = part * chunk
    mean, var = column_moments(
        x, outer, first, inside, begin, tl.minimum(begin + chunk, size), channels, size, size, 1,
        COLUMNS, ROWS, False, True, LAST,
    )  # fmt: skip
    here = plane * (chunks + tl.zeros((1, 1), tl.int64)) + part
    tl.store(means + here, mean, mask=inside)
    tl.store(variances + here, var, mask=inside)


@triton.jit
def _members(start, first, channels, size, chunk, chunks, width, total, BLOCK: tl.constexpr):
    """A block of a pool's chunks: their indices, a mask, and their numbers of elements."""
    piece = start + tl.arange(0, BLOCK)
    plane = piece // chunks
    here = (first + plane // width * channels + plane % width) * chunks + piece % chunks
    count = tl.minimum(size - piece % chunks * chunk, chunk)
    return here, piece < total, count.to(tl.float64)


@triton.jit
def merge_moments(
    partial_means, partial_variances, means, variances,
    channels, size, chunk, chunks, samples, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and variance of a pool, from the means and variances of its chunks."""
    pool = tl.program_id(0)
    across = channels // width
    first = (pool // across).to(tl.int64) * samples * channels + (pool % across) * width
    total = samples * width * chunks
    elements = samples * width * (tl.zeros((1,), tl.float64) + size)
    mean = tl.zeros((1,), tl.float64)
    for start in range(0, total, BLOCK):
        here, inside, count = _members(
            start, first, channels, size, chunk, chunks, width, total, BLOCK
        )
        part = tl.load(partial_means + here, mask=inside, other=0.0)
        mean += tl.sum(part * count, 0, keep_dims=True)
    mean /= elements
    squares = tl.zeros((1,), tl.float64)
    for start in range(0, total, BLOCK):
        here, inside, count = _members(
            start, first, channels, size, chunk, chunks, width, total, BLOCK
        )
        difference = tl.load(partial_means + here, mask=inside, other=0.0) - mean
        part = tl.load(partial_variances + here, mask=inside, other=0.0) + difference * difference
        squares += tl.sum(tl.where(inside, part * count, 0.0), 0, keep_dims=True)
    here = pool + tl.arange(0, 1)
    tl.store(means + here, mean)
    tl.store(variances + here, squares / elements)


@triton.jit
def apply(
    x, y, residual, means, variances, weight, bias, eps, slope,
    columns, channels, size, chunks, samples, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, GIVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """A tile of y, with the statistics of pools, or with GIVEN mean, scale and shift of planes."""
    part, outer, first, inside, plane = _piece(chunks, columns, COLUMNS, LAST, True)
    high, low, inverse, w, scale, shift = coefficients(
        means, variances, weight, bias, eps, plane, inside, channels, samples, width, GIVEN
    )
    start = part * ROWS
    base, offset = tile_at(outer, first, start, channels, size, size, COLUMNS, ROWS, True, LAST)
    mask = inside & (start + tl.arange(0, ROWS)[None, :] < size)
    values = read(x, base, offset, mask)
    t = pre_activation(values, residual, base, offset, mask, high, scale, shift)
    tl.store(y + base + offset, activate(t, slope, ACTIVATION), mask=mask)


@triton.jit
def partial_sums(
    gradient, x, residual, sums, means, variances, weight, bias, eps, slope,
    columns, channels, size, chunk, chunks, samples, width, planes,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, GIVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Sums of g and g * x_hat over each chunk of each plane, (2, planes, chunks).

    g is pre_activation_gradient. With GIVEN, x_hat is ``x - mean``.
    """
    part, outer, first, inside, plane = _piece(chunks, columns, COLUMNS, LAST, False)
    high, low, inverse, w, scale, shift = coefficients(
        means, variances, weight, bias, eps, plane, inside, channels, samples, width, GIVEN
    )
    begin = part * chunk
    end = tl.minimum(begin + chunk, size)
    plain = tl.zeros((COLUMNS, 1), tl.float64)
    weighted = plain
    for start in range(begin, end, ROWS):
        base, offset = tile_at(outer, first, start, channels, size, size, COLUMNS, ROWS, True, LAST)
        mask = inside & (start + tl.arange(0, ROWS)[None, :] < end)
        g, x_hat = read_both(
            gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
            ACTIVATION,
        )  # fmt: skip
        product = tl.sum(g * x_hat, 1, keep_dims=True)
        narrow = product.to(tl.float64)
        if GIVEN:  # g * (x - mean) may overflow float32
            large = (tl.abs(product) < 1e37) == 0
            if tl.max(tl.max(large.to(tl.int32), 1), 0) > 0:
                wide = tl.sum(g.to(tl.float64) * x_hat.to(tl.float64), 1, keep_dims=True)
                narrow = tl.where(large, wide, narrow)
        plain += tl.sum(g, 1, keep_dims=True)
        weighted += narrow
    here = plane * (chunks + tl.zeros((1, 1), tl.int64)) + part
    tl.store(sums + here, plain, mask=inside)
    behind = planes * (chunks + tl.zeros((1, 1), tl.int64))
    tl.store(sums + behind + here, weighted, mask=inside)


@triton.jit
def merge_sums(
    partial, sums, pool_means, variances, weight, eps,
    channels, size, chunks, samples, width, planes,
    PLANES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Sums of each plane, (2, planes), and means of each pool, (2, pools), from those of chunks.

    The sums of a plane are of g and ``g * (x - mean)``. The means of a pool are of w * g and
    w * g * x_hat. Without ``pool_means`` the second sums of chunks are of ``g * (x - mean)``.
    """
    pool = tl.program_id(0)
    across = channels // width
    first = (pool // across).to(tl.int64) * samples * channels + (pool % across) * width
    plain_mean = tl.zeros((1, 1), tl.float64)
    weighted_mean = plain_mean
    for begin in range(0, samples * width, PLANES):
        member = begin + tl.arange(0, PLANES)[:, None]
        inside = member < samples * width
        plane = first + member // width * channels + member % width
        plain = tl.zeros((PLANES, 1), tl.float64)
        weighted = plain
        for start in range(0, chunks, CHUNKS):
            part = start + tl.arange(0, CHUNKS)[None, :]
            mask = inside & (part < chunks)
            here = partial + plane * chunks + part
            plain += tl.sum(tl.load(here, mask=mask, other=0.0), 1, keep_dims=True)
            here += planes * (chunks + tl.zeros((1, 1), tl.int64))
            weighted += tl.sum(tl.load(here, mask=mask, other=0.0), 1, keep_dims=True)
        tl.store(sums + plane, plain, mask=inside)
        if pool_means is None:
            tl.store(sums + planes + plane, weighted, mask=inside)
        else:
            inverse = inverse_std(tl.load(variances + pool), eps)
            tl.store(sums + planes + plane, weighted * std(inverse), mask=inside)
            w = parameter(weight, plane % channels, inside, 1.0)
            plain_mean += tl.sum(w * plain, 0, keep_dims=True)
            weighted_mean += tl.sum(w * weighted, 0, keep_dims=True)
    if pool_means is not None:
        here = pool_means + pool + tl.zeros((1, 1), tl.int32)
        count = samples * width * (tl.zeros((1, 1), tl.float64) + size)
        tl.store(here, plain_mean / count)
        tl.store(here + tl.num_programs(0), weighted_mean / count)


@triton.jit
def apply_gradient(
    gradient, x, residual, dx, residual_gradient, means, variances, weight, bias, a, b, c, eps,
    slope, columns, channels, size, chunks, samples, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, LAST: tl.constexpr, GIVEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """A tile of dx and residual_gradient.

    With GIVEN, dx is ``a * g + b * (x - mean) + c`` with coefficients of planes. Otherwise c has
    the means of w * g over pools, and b the means of w * g * x_hat.
    """
    part, outer, first, inside, plane = _piece(chunks, columns, COLUMNS, LAST, True)
    high, low, inverse, w, scale, shift = coefficients(
        means, variances, weight, bias, eps, plane, inside, channels, samples, width, GIVEN
    )
    start = part * ROWS
    base, offset = tile_at(outer, first, start, channels, size, size, COLUMNS, ROWS, True, LAST)
    mask = inside & (start + tl.arange(0, ROWS)[None, :] < size)
    g, x_hat = read_both(
        gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
        ACTIVATION,
    )  # fmt: skip
    if GIVEN:
        d = parameter(a, plane, inside, 1.0) * g + parameter(b, plane, inside, 0.0) * x_hat
        d += parameter(c, plane, inside, 0.0)
    else:
        channel = plane % channels
        pool = plane // channels // samples * (channels // width) + channel // width
        d = w * g - parameter(c, pool, inside, 0.0) - x_hat * parameter(b, pool, inside, 0.0)
        d = d * inverse
    tl.store(dx + base + offset, d, mask=mask)
    if residual_gradient is not None:
        tl.store(residual_gradient + base + offset, g, mask=mask)


@triton.jit
def parameter_gradients(
    sums, variances, dweight, dbias, eps, outers, channels, samples, width,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dweight and dbias, from the sums of each channel in each sample or pool of samples."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    inside = channel < channels
    plain = tl.zeros((COLUMNS, 1), tl.float64)
    weighted = plain
    for start in range(0, outers, ROWS):
        outer = start + tl.arange(0, ROWS)[None, :]
        mask = inside & (outer < outers)
        here = outer.to(tl.int64) * channels + channel
        behind = outers * (tl.zeros((1, 1), tl.int64) + channels)
        pool = outer // samples * (channels // width) + channel // width
        var = tl.load(variances + pool, mask=mask, other=1.0)
        part = tl.load(sums + behind + here, mask=mask, other=0.0)
        weighted += tl.sum(part * inverse_std(var, eps), 1, keep_dims=True)
        plain += tl.sum(tl.load(sums + here, mask=mask, other=0.0), 1, keep_dims=True)
    store_gradient(dweight, channel, weighted, inside)
    store_gradient(dbias, channel, plain, inside)
