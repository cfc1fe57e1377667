"""Backends: the same few functions, for different machines.

A backend is a module with these functions; x is the feature map (N, C, *S), contiguous or
channels_last, and everything per plane is an (N, C) tensor in the statistics' type
(``reference.statistics_dtype``). Where a function takes a ``tail``, the output goes through it
while it is written, and the gradient while it is read:
``y = activation((x - mean) * scale + shift + residual)``, and
``g = gradient * activation'((x - mean) * scale + shift + residual)``.

``refuses(x, weight, bias)``
    None, or the reason why it does not take this call.
``moments(x)``
    ``mean, var`` of each plane; var is biased (divided by the number of elements).
``apply(x, mean, scale, shift, tail=PLAIN, out=None)``
    ``y``, in x's dtype and memory layout.
``gradient_sums(gradient, x, mean, scale=None, shift=None, tail=PLAIN)``
    ``sum(g)`` and ``sum(g * (x - mean))`` over each plane. ``scale`` and ``shift`` are those of
    the forward, and only needed with an activation.
``apply_gradient(gradient, x, mean, a, b, c, scale=None, shift=None, tail=PLAIN,
needs_residual=False)``
    ``a * g + b * (x - mean) + c`` and, where needed, ``g`` (else None), both in x's dtype and
    memory layout.
``normalize(x, weight, bias, eps, pool=INSTANCE, tail=PLAIN, out=None)``
    ``y, mean, var``: moments and apply in one visit of each pool. ``pool`` is a rectangle of
    planes, a :class:`momentnorm.Pool`; mean and var have one value for each of them,
    (N / samples, C / channels). weight and bias are (C,).
``normalize_with(x, mean, var, weight, bias, eps, tail=PLAIN, out=None)``
    ``y`` with given moments, one of each channel: all four are (C,), in any floating dtypes.
``normalize_backward(gradient, x, mean, var, weight, bias, eps, pool=INSTANCE, tail=PLAIN,
needs_residual=False)``
    Its backward: ``dx, g or None, dweight, dbias, sums``, where dweight and dbias are (C,), already
    summed over the samples, in the dtype of the weight, or else of the bias, or else of the
    statistics, and sums, for the pool of one plane, are those of ``gradient_sums``, (2, N, C), and
    None for others. The value of the bias is only read with an activation.

A backend of kernels checks the memory and shape of its operands by ``operands.py``.

``out`` has x's shape, dtype and strides, and may be x itself. A residual may have other strides
than x. Without an activation ``g`` is the gradient, so the engine passes no tail to a backward.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: The activations that a tail may have: the names of ``torch.nn.functional``, gelu by erf.
ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid")


class Tail(NamedTuple):
    """What follows a normalization: a sum with a residual, then an activation."""

    activation: str = ""  # one of ACTIVATIONS, or none
    slope: float = 0.01  # of leaky_relu
    residual: Tensor | None = None  # like x, in x's dtype


#: Nothing follows.
PLAIN = Tail()
