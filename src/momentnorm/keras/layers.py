"""Subclasses of Keras' normalization layers, computed by the kernels under the torch backend."""

from __future__ import annotations

from typing import Any

import keras
import torch
from torch import Tensor

from .. import functional

_register = keras.saving.register_keras_serializable(package="momentnorm")


@_register
class GroupNormalization(keras.layers.GroupNormalization):
    r"""Normalize each group of channels of each sample by its own mean and variance.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    A group is C / ``groups`` neighbouring channels of one sample (Wu and He, arXiv 1803.08494).
    Arguments, weights and configuration are those of ``keras.layers.GroupNormalization``.

    Args:
        groups: a divisor of C; -1 for as many groups as channels, which is Instance Normalization.
        axis: the axis of the channels. The first and the last are read without a copy.
        epsilon: the number that is added to the variance.
        center, scale: whether the layer has ``beta`` and ``gamma``, each (C,).
        **options: the initializers, regularizers and constraints of ``beta`` and ``gamma``, and
            ``name`` and ``dtype``, as in Keras.

    Shape:
        (N, \*S, C) with ``axis=-1`` or (N, C, \*S) with ``axis=1``, and the output alike.

    Raises:
        ValueError: a number of groups that does not divide the channels; an axis without a size.

    >>> x = keras.ops.convert_to_tensor([[[1.0], [6.0], [9.0], [4.0]]])  # mean 5, variance 8.5
    >>> y = GroupNormalization(groups=1, epsilon=1e-5)(x)
    >>> print(y.detach().numpy().ravel().round(4))
    [-1.372  0.343  1.372 -0.343]
    """

    def call(self, inputs: Any) -> Any:
        if not _served(inputs):
            return super().call(inputs)
        axis = self.axis % inputs.dim()
        if axis == 0:
            return super().call(inputs)
        gamma, beta = (_operand(values, inputs) for values in (self.gamma, self.beta))
        x = _channels_second(inputs, axis)
        if x.shape[1:].numel() == self.groups:  # one value is its own mean
            y = _planes_of_zeros(x, beta)
        else:
            y = functional.group_norm(x, self.groups, gamma, beta, self.epsilon)
        return keras.ops.cast(y.movedim(1, axis), self.compute_dtype)


@_register
class InstanceNormalization(GroupNormalization):
    r"""Normalize each channel of each sample by its own mean and variance.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    (Ulyanov, Vedaldi and Lempitsky, arXiv 1607.08022). Arguments and weights are those of
    TensorFlow Addons' layer of this name. Keras has it as ``GroupNormalization(groups=-1)``.

    Args:
        axis: the axis of the channels. The first and the last are read without a copy.
        epsilon: the number that is added to the variance. 1e-3 by default, as everywhere in Keras;
            torch's layers have 1e-5.
        center, scale: whether the layer has ``beta`` and ``gamma``, each (C,).
        **options: the initializers, regularizers and constraints of ``beta`` and ``gamma``, and
            ``name`` and ``dtype``, as in Keras.

    Shape:
        (N, \*S, C) with ``axis=-1`` or (N, C, \*S) with ``axis=1``, and the output alike.

    Raises:
        ValueError: the axis of the samples; an axis without a size.

    >>> x = keras.ops.convert_to_tensor([[[1.0], [6.0], [9.0], [4.0]]])  # mean 5, variance 8.5
    >>> y = InstanceNormalization(epsilon=1e-5)(x)
    >>> print(y.detach().numpy().ravel().round(4))
    [-1.372  0.343  1.372 -0.343]
    """

    def __init__(
        self,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **options: Any,
    ) -> None:
        if axis == 0:
            raise ValueError(
                "axis=0 has the samples: name the axis of the channels, 1 or -1, or use "
                "BatchNormalization"
            )
        super().__init__(
            groups=-1, axis=axis, epsilon=epsilon, center=center, scale=scale, **options
        )

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        del config["groups"]
        return config


@_register
class LayerNormalization(keras.layers.LayerNormalization):
    r"""Normalize each sample by the mean and variance over the named axes.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    (Ba, Kiros and Hinton, arXiv 1607.06450). Arguments, weights and configuration are those of
    ``keras.layers.LayerNormalization``. Over the last axes the computation is torch's own layer
    norm; over any others it is the kernels'.

    Args:
        axis: the normalized axes, one or several.
        epsilon: the number that is added to the variance.
        center, scale: whether the layer has ``beta`` and ``gamma``, each in the shape of the
            normalized axes.
        **options: the initializers, regularizers and constraints of ``beta`` and ``gamma``, and
            ``name`` and ``dtype``, as in Keras.

    Shape:
        any, and the output alike.

    >>> x = keras.ops.convert_to_tensor([[[1.0, 6.0], [9.0, 4.0]]])
    >>> y = LayerNormalization(axis=[1, 2], epsilon=1e-5)(x)
    >>> print(y.detach().numpy().ravel().round(4))
    [-1.372  0.343  1.372 -0.343]
    """

    def call(self, inputs: Any) -> Any:
        if not _served(inputs) or getattr(self, "rms_scaling", False):
            return super().call(inputs)
        given = [axis % inputs.dim() for axis in self.axis]
        axes = sorted(given)
        x = inputs.to(_wide(inputs))
        gamma, beta = (_operand(values, inputs) for values in (self.gamma, self.beta))
        if given != axes:  # the weights have the axes in the order in which they were given
            order = [given.index(axis) for axis in axes]
            gamma, beta = (v if v is None else v.permute(order) for v in (gamma, beta))
        if axes == list(range(inputs.dim()))[-len(axes) :]:
            sizes = [inputs.shape[axis] for axis in axes]
            y = functional.layer_norm(x, sizes, gamma, beta, self.epsilon)
        else:
            y = _normalized(x, axes, self.epsilon)
            shape = [size if i in axes else 1 for i, size in enumerate(inputs.shape)]
            if gamma is not None:
                y = y * gamma.reshape(shape)
            if beta is not None:
                y = y + beta.reshape(shape)
        return keras.ops.cast(y, self.compute_dtype)


@_register
class BatchNormalization(keras.layers.BatchNormalization):
    r"""Normalize each channel by its mean and variance over the batch, or by the moving ones.

    .. math:: y = \gamma \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta

    (Ioffe and Szegedy, arXiv 1502.03167). Arguments, weights and configuration are those of
    ``keras.layers.BatchNormalization``; so are the moving statistics: ``momentum`` is the share of
    the old ones, and the variance is biased. With a mask, ``renorm`` or ``synchronized``, and for a
    single value in each channel, the layer does Keras' own computation.

    Args:
        axis: the axis of the channels. The first and the last are read without a copy.
        momentum: the share that the moving statistics keep in each step.
        epsilon: the number that is added to the variance.
        center, scale: whether the layer has ``beta`` and ``gamma``, each (C,).
        **options: the initializers, regularizers and constraints, ``renorm`` and its options,
            ``synchronized``, ``name`` and ``dtype``, as in Keras.

    Shape:
        (N, C), (N, \*S, C) with ``axis=-1`` or (N, C, \*S) with ``axis=1``, and the output alike.

    >>> x = keras.ops.convert_to_tensor([[1.0, 6.0], [9.0, 4.0]])  # means 5 and 5
    >>> layer = BatchNormalization(momentum=0.0, epsilon=1e-5)
    >>> layer(x, training=True).round(decimals=4).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    >>> layer.moving_variance.value.tolist()
    [16.0, 1.0]
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # Keras 3.13 has no renorm yet.
        own = getattr(self, "renorm", False) or self.synchronized or self.epsilon <= 0
        if mask is not None or own or not _served(inputs):
            return super().call(inputs, training=training, mask=mask)
        x = _channels_second(inputs, self.axis % inputs.dim())
        values = x.numel() // max(x.shape[1], 1)
        batch = bool(training) and self.trainable
        if batch and values < 2:
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = (_operand(v, inputs) for v in (self.gamma, self.beta))
        if batch:
            y, mean, var = _batch_norm(x, gamma, beta, self.epsilon)
            _move(self.moving_mean, mean, self.momentum)
            _move(self.moving_variance, var * ((values - 1) / values), self.momentum)
        else:
            mean, var = (
                keras.ops.convert_to_tensor(v) for v in (self.moving_mean, self.moving_variance)
            )
            y = functional.batch_norm(x, mean, var, gamma, beta, eps=self.epsilon)
        return keras.ops.cast(y.movedim(1, self.axis), self.compute_dtype)


def _served(inputs: Any) -> bool:
    """Tell whether the functions of momentnorm take these inputs."""
    return (
        keras.backend.backend() == "torch"
        and isinstance(inputs, Tensor)
        and inputs.is_floating_point()
        and inputs.device.type != "meta"
        and inputs.dim() > 1
    )


def _channels_second(inputs: Tensor, axis: int) -> Tensor:
    """Return the inputs as a feature map (N, C, *S), a view where the kernels can read it."""
    x = inputs.movedim(axis, 1)
    return x.contiguous() if 1 < axis < inputs.dim() - 1 else x


def _wide(inputs: Tensor) -> torch.dtype:
    """Return the dtype of the weights beside the inputs: float32 with half types."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def _operand(values: Any, inputs: Tensor) -> Tensor | None:
    if values is None:
        return None
    operand: Tensor = keras.ops.convert_to_tensor(values)
    return operand.to(_wide(inputs))


def _batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the mean and the unbiased variance of each channel, (C,)."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    mean, var = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    # With a momentum of 1 the running statistics become those of the batch.
    y = functional.batch_norm(x, mean, var, gamma, beta, True, 1.0, eps)
    return y, mean, var


def _move(moving: Any, batch: Tensor, momentum: float) -> None:
    old = keras.ops.convert_to_tensor(moving).to(batch.dtype)
    moving.assign(keras.ops.cast(old * momentum + batch * (1 - momentum), moving.dtype))


def _planes_of_zeros(x: Tensor, beta: Tensor | None) -> Tensor:
    """Return beta in the shape of x (N, C, *S): the output where each mean is of one value."""
    zeros = x * 0  # with the graph of x, and NaN where x is not finite
    if beta is None:
        return zeros
    return zeros + beta.to(x.dtype).reshape(-1, *(1 for _ in x.shape[2:]))


def _normalized(x: Tensor, axes: list[int], eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) over these axes, in the shape of x."""
    first, last = axes[0], axes[-1]
    count = torch.Size([x.shape[axis] for axis in axes]).numel()
    if count < 2:
        return _planes_of_zeros(x, None)
    if last - first + 1 == len(axes):  # neighbours: planes whose elements are strided
        before, after = x.shape[:first].numel(), x.shape[last + 1 :].numel()
        planes = x.reshape(before, count, after).transpose(1, 2)
        return functional.instance_norm(planes, eps=eps).transpose(1, 2).reshape(x.shape)
    kept = [axis for axis in range(x.dim()) if axis not in axes]
    front = x.permute(*kept, *axes)
    planes = front.reshape(1, front.shape[: len(kept)].numel(), count)
    y = functional.instance_norm(planes, eps=eps).reshape(front.shape)
    order = [*kept, *axes]
    return y.permute([order.index(axis) for axis in range(x.dim())])
