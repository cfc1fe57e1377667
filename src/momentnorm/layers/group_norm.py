"""Group Normalization: one mean and variance for each group of channels of a sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from .drop_in import DropIn, constructor_of


class GroupNorm(DropIn, nn.GroupNorm):
    r"""Group Normalization, in place of :class:`torch.nn.GroupNorm`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    Mean and biased variance are taken over the elements of one group of neighbouring channels of
    one sample, in training and in evaluation (Wu and He, *Group Normalization*, arXiv 1803.08494).
    As many groups as channels are Instance Normalization. One group is Layer Normalization over
    (C, \*S), with a weight and a bias per channel. The activation :math:`\phi` and the residual r
    are off by default. They are computed in the same pass over memory as the normalization.

    Args:
        num_groups: number of groups, a divisor of ``num_channels``.
        num_channels: C, the number of channels.
        eps: added to the variance.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        device, dtype: of the parameters.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None; or
            ``("leaky_relu", 0.2)`` for another slope than 0.01.
        inplace: write the output over the input; an error where autograd would record the call.

    A call also takes ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.group_norm` does, and an ``activation`` in place of the layer's.

    Shape:
        (N, C) or (N, C, \*S), and the output alike, in the input's memory layout. ``residual`` and
        ``out`` have the shape of the input. There is no unbatched input: (C, L) is read as (N, C).

    Raises:
        ValueError: a ``num_groups`` that does not divide ``num_channels``; groups of one value, if
            there is one sample; an unknown activation.
        RuntimeError: another number of channels, with ``affine``; ``inplace`` or ``out`` where
            autograd would have to record the call.

    >>> GroupNorm(1, 2)(torch.tensor([[[1.0, 6.0], [9.0, 4.0]]])).detach()
    tensor([[[-1.3720,  0.3430],
             [ 1.3720, -0.3430]]])
    """

    __init__ = constructor_of(nn.GroupNorm)

    def _normalize(self, input: Tensor, options: dict[str, Any]) -> Tensor:
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, **options
        )
