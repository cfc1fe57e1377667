"""Normalizations as functions of NumPy arrays, computed by the kernels.

An argument may be an array, a nested list, or any object with ``__dlpack__`` (a tensor of torch, an
array of JAX or CuPy). The result is a NumPy array with the shape and dtype of ``x``. Integers are
computed in float64, as in :func:`numpy.mean`.

``axis`` names the channels: 1 by default, and ``axis=-1`` for channels last. Both are read and
written where they lie in memory. Channels on another axis are copied first.

>>> x = [[[[1, 6], [9, 4]], [[12, 18], [13, 11]]]]  # 1 sample, 2 channels of 2x2 elements
>>> mean, var = moments(x)
>>> print(mean, var, var**0.5)
[[ 5.  13.5]] [[8.5  7.25]] [[2.91547595 2.6925824 ]]
>>> print(instance_norm(x).round(4))
[[[[-1.372   0.343 ]
   [ 1.372  -0.343 ]]
<BLANKLINE>
  [[-0.5571  1.6713]
   [-0.1857 -0.9285]]]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..core.pool import Pool
from .arrays import (
    along,
    array,
    checked_axis,
    operands,
    parameter_dtype,
    product,
    proportions,
    running,
    tensor,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .arrays import Array, Input

__all__ = [
    "batch_norm",
    "contrast_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "moments",
    "switchable_norm",
]


def instance_norm(
    x: Input,
    gamma: Input | None = None,
    beta: Input | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    r"""Normalize each channel of each sample by its own mean and variance.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    Mean and biased variance are those of one channel of one sample (Ulyanov, Vedaldi and Lempitsky,
    arXiv 1607.08022).

    Args:
        x: (N, C, \*S), or (N, \*S, C) with ``axis=-1``, and at least one axis in S.
        gamma: (C,), a number, or an array that broadcasts to x along the channels. None is 1.
        beta: an array like ``gamma``. None is 0.
        axis: the axis of the channels.
        eps: the number that is added to the variance.

    Returns:
        y, an array in the shape, dtype and axis order of x.

    Raises:
        ValueError: an array with fewer than three axes or one element in a plane; a ``gamma`` or
            ``beta`` that does not fit the channels.
        TypeError: a dtype that is neither integer nor float16, float32 or float64.
        numpy.exceptions.AxisError: an axis that x does not have, or that of the samples.

    >>> x = np.array([[[[2.0, 7.0], [3.0, 8.0]]]])
    >>> instance_norm(x).round(4)
    array([[[[-1.1767,  0.7845],
             [-0.7845,  1.1767]]]])
    """
    features, weight, bias, axis = operands(x, gamma, beta, axis, spatial=1)
    y = functional.instance_norm(features, weight=weight, bias=bias, eps=eps)
    return array(y.movedim(1, axis))


def batch_norm(
    x: Input,
    gamma: Input | None = None,
    beta: Input | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    *,
    training: bool | None = None,
    momentum: float = 0.1,
    axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    r"""Normalize each channel by its mean and variance over the batch, or by the running ones.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    (Ioffe and Szegedy, arXiv 1502.03167).

    Args:
        x: (N, C) or (N, C, \*S); (N, \*S, C) with ``axis=-1``.
        gamma, beta: as in :func:`instance_norm`.
        running_mean, running_var: arrays (C,). In training they are updated in place, by
            ``running += momentum * (batch - running)``, with the unbiased variance of the batch.
        training: use the statistics of the batch. By default that is done where there are no
            running statistics.
        momentum: the share of this batch in the new running statistics.
        axis, eps: as in :func:`instance_norm`.

    Returns:
        y, an array in the shape, dtype and axis order of x.

    Raises:
        ValueError: fewer than two axes; one value per channel in training; one running statistic
            without the other; running statistics that are no writeable arrays (C,) of floats.
        TypeError, numpy.exceptions.AxisError: as in :func:`instance_norm`.

    >>> x = np.array([[1.0, 6.0], [9.0, 4.0]])  # means 5 and 5, variances 16 and 1
    >>> batch_norm(x).round(4)
    array([[-1.,  1.],
           [ 1., -1.]])
    >>> batch_norm(x, running_mean=np.array([1.0, 4.0]), running_var=np.array([4.0, 1.0])).round(2)
    array([[0., 2.],
           [4., 0.]])
    """
    features, weight, bias, axis = operands(x, gamma, beta, axis, spatial=0)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var go together: pass both, or neither")
    mean, var = (
        None if values is None else running(name, values, features.shape[1])
        for name, values in (("running_mean", running_mean), ("running_var", running_var))
    )
    y = functional.batch_norm(
        features,
        mean,
        var,
        weight=weight,
        bias=bias,
        training=running_mean is None if training is None else training,
        momentum=momentum,
        eps=eps,
    )
    return array(y.movedim(1, axis))


def group_norm(
    x: Input,
    gamma: Input | None = None,
    beta: Input | None = None,
    *,
    num_groups: int,
    axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    r"""Normalize each group of channels of each sample by its own mean and variance.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    A group is C / ``num_groups`` neighbouring channels of one sample (Wu and He, arXiv 1803.08494).
    ``gamma`` and ``beta`` belong to channels, not to groups.

    Args:
        x: (N, C) or (N, C, \*S); (N, \*S, C) with ``axis=-1``.
        gamma, beta: as in :func:`instance_norm`.
        num_groups: a divisor of C. C groups are Instance Normalization.
        axis, eps: as in :func:`instance_norm`.

    Returns:
        y, an array in the shape, dtype and axis order of x.

    Raises:
        ValueError: fewer than two axes; a number of groups that does not divide C.
        TypeError, numpy.exceptions.AxisError: as in :func:`instance_norm`.

    >>> x = np.array([[1.0, 6.0, 9.0, 4.0]])
    >>> group_norm(x, num_groups=2).round(4)
    array([[-1.,  1.,  1., -1.]])
    """
    features, weight, bias, axis = operands(x, gamma, beta, axis, spatial=0)
    channels = features.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"num_groups={num_groups} does not divide the {channels} channels of x on axis {axis}: "
            "choose a divisor, or another axis"
        )
    y = functional.group_norm(features, num_groups, weight, bias, eps)
    return array(y.movedim(1, axis))


def layer_norm(
    x: Input,
    gamma: Input | None = None,
    beta: Input | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    eps: float = 1e-5,
) -> Array:
    r"""Normalize each sample by the mean and variance over the named axes.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    (Ba, Kiros and Hinton, arXiv 1607.06450).

    Args:
        x: an array of any shape.
        gamma, beta: arrays that broadcast to x, or None for 1 and 0. An array with the shape of the
            normalized axes, (C, H, W) say, lies along these.
        axis: the normalized axes, here not those of channels. By default all but the first.
        eps: the number that is added to the variance.

    Returns:
        y, an array in the shape and dtype of x.

    Raises:
        ValueError: a ``gamma`` or ``beta`` that does not broadcast to x; one axis twice.
        TypeError: as in :func:`instance_norm`.
        numpy.exceptions.AxisError: an axis that x does not have.

    >>> x = np.array([[[1.0, 6.0], [9.0, 4.0]]])
    >>> layer_norm(x).round(4)
    array([[[-1.372,  0.343],
            [ 1.372, -0.343]]])
    >>> layer_norm(x, axis=-1).round(4)
    array([[[-1.,  1.],
            [ 1., -1.]]])
    """
    values = tensor("x", x)
    if axis is None:
        axes = list(range(1, values.dim()))
    else:
        given = [axis] if isinstance(axis, int) else list(axis)
        axes = sorted(checked_axis(one, values.dim()) for one in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} names one axis twice: name each once")
    if not axes:
        raise ValueError(f"x of shape {tuple(values.shape)} has no axis to normalize: pass axis=")
    kept = [i for i in range(values.dim()) if i not in axes]
    # One sample whose channels are the kept axes: each is a plane of its own.
    planes = values.permute(*kept, *axes).reshape(1, product(values, kept), product(values, axes))
    y = _normalized_planes(planes.to(parameter_dtype(values)), eps)
    y = y.reshape([values.shape[i] for i in (*kept, *axes)])
    y = y.permute(*(int(i) for i in np.argsort([*kept, *axes])))
    for name, operand, combine in (("gamma", gamma, torch.mul), ("beta", beta, torch.add)):
        if operand is not None:
            y = combine(y, along(name, operand, values, axes))
    return array(y.to(values.dtype))


def switchable_norm(
    x: Input,
    gamma: Input | None = None,
    beta: Input | None = None,
    w_mean: Input = (1 / 3, 1 / 3, 1 / 3),
    w_var: Input = (1 / 3, 1 / 3, 1 / 3),
    *,
    axis: int = 1,
    eps: float = 1e-5,
) -> Array:
    r"""Normalize by the moments of plane, sample and batch, mixed in given proportions.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta, \quad
        \mu = \sum_k w_k \mu_k, \quad \sigma^2 = \sum_k w'_k \sigma_k^2,
        \quad k \in \{\text{plane, sample, batch}\}

    (Luo et al., arXiv 1806.10779). The variances are biased, as in NumPy.
    :class:`momentnorm.SwitchableNorm2d` is the authors' layer: its proportions are the softmax of
    parameters, and its variances are unbiased.

    Args:
        x: (N, C, \*S), or (N, \*S, C) with ``axis=-1``, and at least one axis in S.
        gamma, beta: as in :func:`instance_norm`.
        w_mean: the proportions of the three means: plane (IN), sample (LN), batch (BN).
        w_var: the proportions of the three variances.
        axis, eps: as in :func:`instance_norm`.

    Returns:
        y, an array in the shape, dtype and axis order of x.

    Raises:
        ValueError: proportions that are not three numbers, and as in :func:`instance_norm`.
        TypeError, numpy.exceptions.AxisError: as in :func:`instance_norm`.

    >>> x = np.array([[[1.0, 3.0], [2.0, 6.0]]])
    >>> switchable_norm(x, w_mean=[1, 0, 0], w_var=[1, 0, 0]).round(4)  # Instance Normalization
    array([[[-1.,  1.],
            [-1.,  1.]]])
    >>> switchable_norm(x).round(4)
    array([[[-0.9847,  0.4924],
            [-0.8513,  1.1918]]])
    """
    features, weight, bias, axis = operands(x, gamma, beta, axis, spatial=1)
    shares = [proportions(name, w) for name, w in (("w_mean", w_mean), ("w_var", w_var))]
    pools = Pool(1, 1), Pool(1, None), Pool(None, 1)

    def mixed(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        kinds = [pool(mean, var) for pool in pools]
        mean, var = (
            torch.stack([values[i] for values in kinds], -1) @ shares[i].to(mean) for i in (0, 1)
        )
        return mean, var

    y = functional.pooled_norm(features, weight, bias, pool=mixed, eps=eps)
    return array(y.movedim(1, axis))


def contrast_norm(x: Input, *, axis: int = 1, eps: float = 0.0) -> Array:
    r"""Divide each channel of each sample by its sum.

    .. math:: y = \frac{x}{\sum x + \epsilon}

    (Ulyanov, Vedaldi and Lempitsky, arXiv 1607.08022, where there is no eps).

    Args:
        x: (N, C, \*S), or (N, \*S, C) with ``axis=-1``, and at least one axis in S.
        axis: the axis of the channels.
        eps: the number that is added to the sum. With 0, a plane that sums to 0 becomes infinite or
            NaN.

    Returns:
        y, an array in the shape, dtype and axis order of x.

    Raises:
        ValueError, TypeError, numpy.exceptions.AxisError: as in :func:`instance_norm`.

    >>> contrast_norm(np.array([[[1.0, 3.0, 4.0, 2.0]]]))
    array([[[0.1, 0.3, 0.4, 0.2]]])
    """
    features, _, _, axis = operands(x, None, None, axis, spatial=1)
    sums = features.sum(tuple(range(2, features.dim())), keepdim=True, dtype=torch.float64)
    return array((features / (sums + eps)).to(features.dtype).movedim(1, axis))


def moments(x: Input, *, axis: int = 1) -> tuple[Array, Array]:
    r"""Return the mean and the biased variance of each channel of each sample.

    Args:
        x: (N, C, \*S), or (N, \*S, C) with ``axis=-1``, and at least one axis in S.
        axis: the axis of the channels.

    Returns:
        mean and var, arrays (N, C) in float64.

    Raises:
        ValueError, TypeError, numpy.exceptions.AxisError: as in :func:`instance_norm`.

    >>> moments(np.array([[[1.0, 3.0], [2.0, 6.0]]]))
    (array([[2., 4.]]), array([[1., 4.]]))
    """
    features, _, _, _ = operands(x, None, None, axis, spatial=1)
    mean, var = functional.plane_moments(features)
    return array(mean), array(var)


def _normalized_planes(planes: Tensor, eps: float) -> Tensor:
    if planes.shape[2] > 1:
        return functional.instance_norm(planes, eps=eps)
    return torch.zeros_like(planes)  # the one element is the mean
