"""Layers: ``torch.nn``'s own classes, with the statistics and the arithmetic done by momentnorm.

Each class inherits the constructor, the parameters and buffers, ``state_dict``, ``repr`` and the
input checks of the torch class that it replaces, so ``isinstance`` tests, initialization code and
checkpoints keep working in both directions.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from . import functional

__all__ = [
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
]


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    # torch's forward under a second name, since TorchScript does not know super().
    _checked_forward = FunctionType(
        nn.modules.instancenorm._InstanceNorm.forward.__code__,
        nn.modules.instancenorm._InstanceNorm.forward.__globals__,
        "_checked_forward",
    )

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript skips this block.
            symbol: object = input
            if isinstance(symbol, Proxy):
                # One node of a symbolic trace, as torch's own layers are.
                tracer: Any = symbol.tracer
                leaf: Tensor = tracer.create_proxy(
                    "call_module", tracer.path_of_module(self), (symbol,), {}
                )
                return leaf
        y: Tensor = self._checked_forward(input)
        return y

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        use_input_stats = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # A script may run where momentnorm is not installed: give it the standard operator.
            return nn.functional.instance_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                use_input_stats,
                momentum,
                self.eps,
            )
        return functional.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            use_input_stats,
            momentum,
            self.eps,
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    r"""Instance Normalization of sequences, in place of :class:`torch.nn.InstanceNorm1d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, L) or (C, L), and the output alike. Two dimensions are always (C, L), unbatched.

    >>> InstanceNorm1d(2)(torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247],
             [ 0.0000,  0.0000,  0.0000]]])
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    r"""Instance Normalization of images, in place of :class:`torch.nn.InstanceNorm2d`.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    with mean and biased variance over the pixels of each channel of each image, in training and in
    evaluation alike (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing
    Ingredient for Fast Stylization*, arXiv 1607.08022).

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: the share that a batch has in the running statistics; None means 0 here, as in
            torch.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        track_running_stats: keep running statistics in training, and normalize with them in
            evaluation.
        device, dtype: of the parameters and buffers.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).

    Shape:
        (N, C, H, W) or (C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: one pixel a plane, where statistics of the input are wanted; a number of
            channels other than ``num_features``, with ``affine``; another number of dimensions.

    >>> layer = InstanceNorm2d(3, affine=True)
    >>> layer(torch.randn(2, 3, 8, 8)).mean((2, 3)).abs().max().item() < 1e-6
    True
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    r"""Instance Normalization of volumes, in place of :class:`torch.nn.InstanceNorm3d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, D, H, W) or (C, D, H, W), and the output alike, in the input's memory layout.

    >>> InstanceNorm3d(2)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """


class LazyInstanceNorm1d(_InstanceNorm, nn.LazyInstanceNorm1d):
    """:class:`InstanceNorm1d` that takes ``num_features`` from its first input."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_InstanceNorm, nn.LazyInstanceNorm2d):
    """:class:`InstanceNorm2d` that takes ``num_features`` from its first input."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_InstanceNorm, nn.LazyInstanceNorm3d):
    """:class:`InstanceNorm3d` that takes ``num_features`` from its first input."""

    cls_to_become = InstanceNorm3d
