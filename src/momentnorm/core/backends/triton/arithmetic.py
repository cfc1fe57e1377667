"""Arithmetic: the device functions of one tile, (COLUMNS, ROWS) in float32.

A tile holds some elements of a few columns. A column is a plane or a part of one. Values of columns
are (COLUMNS, 1). With POOLED the columns of a tile are one pool, and values of the pool are (1, 1).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def total(values, POOLED: tl.constexpr):
    """Sum of each column, or with POOLED of the whole tile."""
    sums = tl.sum(values, 1, keep_dims=True)
    if POOLED:
        sums = tl.sum(sums, 0, keep_dims=True)
    return sums


@triton.jit
def tile_moments(x, origin, mask, count, POOLED: tl.constexpr):
    """Mean and biased variance, float64, of a tile of ``count`` elements a column or pool.

    Three sums follow each other, and none cancels. The sum of ``x - origin``, where origin is an
    element, gives a rough mean, which is exact for a constant. The sum of ``x - rough`` gives the
    rest of the mean. The sum of the squares about that mean gives the variance. Numbers whose
    squares float32 cannot hold are scaled by a power of two. Each column is scaled on its own, so
    its bits do not depend on its neighbours.
    """
    rough = origin + total(tl.where(mask, x - origin, 0.0) * (1.0 / count), POOLED)
    offset = tl.where(mask, x - rough, 0.0)
    shift = total(offset, POOLED) / count
    centred = tl.where(mask, offset - shift, 0.0)
    narrow = total(centred * centred, POOLED) / count
    var = narrow.to(tl.float64)
    # NaN counts as doubtful.
    doubtful = ((narrow > 1e-24) & (narrow < 1e24)) == 0
    if tl.max(tl.max(doubtful.to(tl.int32), 1), 0) > 0:
        up = narrow < 1.0
        scaled = centred * tl.where(up, 2.0**80, 2.0**-80)
        scaled_var = (total(scaled * scaled, POOLED) / count).to(tl.float64)
        scaled_var = tl.where(up, scaled_var * 2.0**-160, scaled_var * 2.0**160)
        var = tl.where(doubtful, scaled_var, var)
    return rough.to(tl.float64) + shift.to(tl.float64), var


@triton.jit
def inverse_std(var, eps):
    """``1 / sqrt(var + eps)`` of a float64 variance, in float32, and 0 where var + eps is 0.

    Numbers beyond the range of float32 are scaled by a power of two, and the root is scaled back.
    """
    sum = var + eps
    large = sum > 1e30
    small = sum < 1e-30
    scaled = tl.where(large, sum * 2.0**-200, tl.where(small, sum * 2.0**200, sum))
    root = 1.0 / tl.sqrt_rn(scaled.to(tl.float32))
    root = tl.where(large, root * 2.0**-100, tl.where(small, root * 2.0**100, root))
    return tl.where(sum == 0, 0.0, root)


@triton.jit
def two_floats(mean):
    """A mean as the nearest float32 and the rest. ``x - nearest`` is exact for close numbers."""
    high = mean.to(tl.float32)
    return high, (mean - high.to(tl.float64)).to(tl.float32)


@triton.jit
def parameter(pointer, index, mask, default: tl.constexpr):
    """Weight or bias in float32, or the default where there is none."""
    if pointer is None:
        values = tl.full(index.shape, default, tl.float32)
    else:
        values = tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def store_gradient(pointer, index, values, mask):
    """Store the gradient of a parameter in its dtype. Half types are rounded from float32."""
    if pointer.dtype.element_ty != tl.float64:
        values = values.to(tl.float32)
    tl.store(pointer + index, values, mask=mask)


@triton.jit
def std(inverse):
    """``1 / inverse``, float64, and 0 for 0."""
    return tl.where(inverse > 0, 1.0 / inverse, 0.0).to(tl.float64)


@triton.jit
def coefficients(
    means, variances, weight, bias, eps, plane, inside, channels, samples, width,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """Coefficients of columns, found by the plane's number: high, low, inverse, w, scale, shift.

    ``x - mean`` is (x - high) - low, x_hat is ``(x - mean) * inverse``, and the pre_activation is
    (x - high) * scale + shift + residual. Statistics belong to pools of ``samples`` times ``width``
    planes. With GIVEN, mean, scale (in place of weight) and shift (in place of bias) belong to
    planes, and inverse is 1.
    """
    if GIVEN:
        index = plane
        mean = tl.load(means + plane, mask=inside, other=0.0)
        inverse = tl.full(plane.shape, 1.0, tl.float32)
    else:
        index = plane % channels
        pool = plane // channels // samples * (channels // width) + index // width
        mean = tl.load(means + pool, mask=inside, other=0.0)
        inverse = inverse_std(tl.load(variances + pool, mask=inside, other=0.0), eps)
    high, low = two_floats(mean.to(tl.float64))  # a given mean may be float32
    w = parameter(weight, index, inside, 1.0)
    scale = inverse * w
    shift = parameter(bias, index, inside, 0.0) - low * scale
    return high, low, inverse, w, scale, shift


@triton.jit
def _negative_exponential(t):
    return tl.exp(-tl.abs(t))  # never overflows


@triton.jit
def _sigmoid(t):
    """Sigmoid of t and of -t."""
    e = _negative_exponential(t)
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(t < 0, smaller, larger), tl.where(t < 0, larger, smaller)


@triton.jit
def _tanh(t):
    s = t * t
    p = 2.065057899e-02 - 5.717036548e-03 * s  # from tools/fit_activations.py
    p = 1.333149125e-01 + s * (-5.374349526e-02 + s * p)
    small = t + t * s * (-3.333328392e-01 + s * p)
    e = _negative_exponential(2.0 * t)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(t) < 0.625, small, tl.where(t < 0, -large, large))


@triton.jit
def activate(t, slope, ACTIVATION: tl.constexpr):
    """``activation(t)``."""
    if ACTIVATION == "relu":
        t = tl.where(t <= 0, 0.0, t)  # NaN stays NaN
    elif ACTIVATION == "leaky_relu":
        t = tl.where(t > 0, t, t * slope)
    elif ACTIVATION == "silu":
        t = t * _sigmoid(t)[0]
    elif ACTIVATION == "gelu":
        t = t * (0.5 + 0.5 * tl.erf(t * 0.70710678118654752))
    elif ACTIVATION == "tanh":
        t = _tanh(t)
    elif ACTIVATION == "sigmoid":
        t = _sigmoid(t)[0]
    return t


@triton.jit
def activation_gradient(g, t, slope, ACTIVATION: tl.constexpr):
    """``g * activation'(t)``."""
    if ACTIVATION == "relu":
        g = tl.where(t <= 0, 0.0, g)
    elif ACTIVATION == "leaky_relu":
        g = tl.where(t > 0, g, g * slope)
    elif ACTIVATION == "silu":
        value, complement = _sigmoid(t)
        g = g * (value * (1.0 + t * complement))
    elif ACTIVATION == "gelu":
        density = 0.39894228040143268 * _negative_exponential(0.5 * t * t)
        g = g * (0.5 + 0.5 * tl.erf(t * 0.70710678118654752) + t * density)
    elif ACTIVATION == "tanh":
        e = _negative_exponential(2.0 * t)
        g = g * (4.0 * e / ((1.0 + e) * (1.0 + e)))
    elif ACTIVATION == "sigmoid":
        value, complement = _sigmoid(t)
        g = g * (value * complement)
    return g


@triton.jit
def read(pointer, base, offset, mask):
    """A tile in float32, 0 outside the mask."""
    return tl.load(pointer + base + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def pre_activation(x, residual, base, offset, mask, high, scale, shift):
    """pre_activation: ``(x - high) * scale + shift + residual``."""
    t = (x - high) * scale + shift
    if residual is not None:
        t += read(residual, base, offset, mask)
    return t


@triton.jit
def read_both(
    gradient, x, residual, base, offset, mask, high, low, inverse, scale, shift, slope,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """pre_activation_gradient and x_hat, both 0 outside the mask.

    Outside the mask x_hat may overflow, and its product with a gradient of 0 would be NaN.
    """
    values = read(x, base, offset, mask)
    g = read(gradient, base, offset, mask)
    if ACTIVATION != "":
        t = pre_activation(values, residual, base, offset, mask, high, scale, shift)
        g = tl.where(mask, activation_gradient(g, t, slope, ACTIVATION), 0.0)
    x_hat = tl.where(mask, ((values - high) - low) * inverse, 0.0)
    return g, x_hat
