"""Instance Normalization: one mean and variance for each channel of each sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm as TorchInstanceNorm

from .. import functional
from .drop_in import DropIn, LazyDropIn, constructor_of


class _InstanceNorm(DropIn, TorchInstanceNorm):
    #: Whether the output keeps the memory layout of the input. torch's InstanceNorm returns
    #: contiguous outputs, and so does this layer with False.
    keep_layout: bool = True

    #: torch's forward, which checks the input and calls one of the next two methods. They return
    #: a batched input in place of torch's result.
    _batched = TorchInstanceNorm.forward

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return input

    def _handle_no_batch_input(self, input: Tensor) -> Tensor:
        return input.unsqueeze(0)

    def _normalize(self, input: Tensor, options: dict[str, Any]) -> Tensor:
        x = self._batched(input)
        out = options["out"]
        unbatched = x.dim() != input.dim()
        if unbatched:
            for name in ("residual", "mask", "lengths", "out"):
                if options[name] is not None:
                    options[name] = options[name].unsqueeze(0)
        y = functional.instance_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            **options,
        )
        if not self.keep_layout and out is None and not self.inplace:
            y = y.contiguous()
        if not unbatched:
            return y
        if self.inplace:
            return input
        return y.squeeze(0) if out is None else out


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    r"""Instance Normalization of sequences, in place of :class:`torch.nn.InstanceNorm1d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, L) or (C, L), and the output alike. Two dimensions are always (C, L), unbatched.
        ``lengths`` is (N,), or a number without dimensions.

    >>> InstanceNorm1d(2)(torch.tensor([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]]))
    tensor([[[-1.2247,  0.0000,  1.2247],
             [ 0.0000,  0.0000,  0.0000]]])
    """

    __init__ = constructor_of(nn.InstanceNorm1d)


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    r"""Instance Normalization of images, in place of :class:`torch.nn.InstanceNorm2d`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    Mean and biased variance are taken over the pixels of one channel of one image, in training and
    in evaluation (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient
    for Fast Stylization*, arXiv 1607.08022). The activation :math:`\phi` and the residual r are off
    by default. They are computed in the same pass over memory as the normalization.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: share of a batch in the running statistics; None means 0, as in torch.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        track_running_stats: keep running statistics in training, and normalize with them in
            evaluation.
        device, dtype: of the parameters and buffers.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None; or
            ``("leaky_relu", 0.2)`` for another slope than 0.01.
        inplace: write the output over the input; an error where autograd would record the call.

    A call also takes ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.instance_norm` does, and an ``activation`` in place of the layer's.

    Shape:
        (N, C, H, W) or (C, H, W), and the output alike, in the input's memory layout. ``residual``
        and ``out`` have the shape of the input; ``mask`` is (N, 1, H, W) or (1, H, W), ``lengths``
        (N, 2) or (2,).

    Raises:
        ValueError: planes of one pixel, if statistics of the input are used; a number of channels
            other than ``num_features``, with ``affine``; another number of dimensions; an unknown
            activation.
        RuntimeError: ``inplace`` or ``out`` where autograd would have to record the call.

    >>> layer = InstanceNorm2d(3, affine=True)
    >>> layer(torch.randn(2, 3, 8, 8)).mean((2, 3)).abs().max().item() < 1e-6
    True
    """

    __init__ = constructor_of(nn.InstanceNorm2d)


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    r"""Instance Normalization of volumes, in place of :class:`torch.nn.InstanceNorm3d`.

    The equation, the arguments and the errors are those of :class:`InstanceNorm2d`.

    Shape:
        (N, C, D, H, W) or (C, D, H, W), and the output alike, in the input's memory layout.

    >>> InstanceNorm3d(2)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    __init__ = constructor_of(nn.InstanceNorm3d)


class LazyInstanceNorm1d(LazyDropIn, _InstanceNorm, nn.LazyInstanceNorm1d):
    """:class:`InstanceNorm1d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyInstanceNorm1d)
    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(LazyDropIn, _InstanceNorm, nn.LazyInstanceNorm2d):
    """:class:`InstanceNorm2d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyInstanceNorm2d)
    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(LazyDropIn, _InstanceNorm, nn.LazyInstanceNorm3d):
    """:class:`InstanceNorm3d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyInstanceNorm3d)
    cls_to_become = InstanceNorm3d
