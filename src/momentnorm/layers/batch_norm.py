"""Batch Normalization: one mean and variance for each channel of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from .. import functional
from .drop_in import DropIn, LazyDropIn, constructor_of


class _BatchNorm(DropIn, TorchBatchNorm):
    def _normalize(self, input: Tensor, options: dict[str, Any]) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # running statistics are averages over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        # Without running statistics, evaluation uses those of the batch.
        training = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        return functional.batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            **options,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    r"""Batch Normalization of vectors or sequences, in place of :class:`torch.nn.BatchNorm1d`.

    The equation, the arguments and the errors are those of :class:`BatchNorm2d`.

    Shape:
        (N, C) or (N, C, L), and the output alike.

    >>> BatchNorm1d(2)(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).detach()
    tensor([[-1.0000,  0.0000],
            [ 1.0000,  0.0000]])
    """

    __init__ = constructor_of(nn.BatchNorm1d)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch Normalization of images, in place of :class:`torch.nn.BatchNorm2d`.

    .. math:: y = \phi\left(\frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
        + \beta + r\right)

    In training, mean and biased variance are taken over the pixels of one channel of all images.
    In evaluation they are the running statistics (Ioffe and Szegedy, *Batch Normalization:
    Accelerating Deep Network Training by Reducing Internal Covariate Shift*, arXiv 1502.03167). The
    activation :math:`\phi` and the residual r are off by default. They are computed in the same
    pass over memory as the normalization.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: share of a batch in the running statistics; None for averages over all batches.
        affine: learn a weight (gamma, starts at 1) and a bias (beta, starts at 0) per channel.
        track_running_stats: keep running statistics in training, and normalize with them in
            evaluation. Without them evaluation uses the statistics of the batch.
        device, dtype: of the parameters and buffers.
        bias: with ``affine``, whether there is a bias beside the weight (needs a torch that has
            this argument).
        activation: "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid" or None; or
            ``("leaky_relu", 0.2)`` for another slope than 0.01.
        inplace: write the output over the input; an error where autograd would record the call.

    A call also takes ``residual``, ``mask``, ``lengths`` and ``out``, as
    :func:`momentnorm.functional.batch_norm` does, and an ``activation`` in place of the layer's.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout. ``residual`` and ``out``
        have the shape of the input.

    Raises:
        ValueError: one value per channel, if statistics of the input are used; another number of
            dimensions; an unknown activation; an ``eps`` that is not positive.
        RuntimeError: a number of channels other than ``num_features``; ``inplace`` or ``out`` where
            autograd would have to record the call.

    >>> layer = BatchNorm2d(3, activation="relu")
    >>> layer(torch.randn(2, 3, 8, 8)).min().item()
    0.0
    """

    __init__ = constructor_of(nn.BatchNorm2d)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    r"""Batch Normalization of volumes, in place of :class:`torch.nn.BatchNorm3d`.

    The equation, the arguments and the errors are those of :class:`BatchNorm2d`.

    Shape:
        (N, C, D, H, W), and the output alike, in the input's memory layout.

    >>> BatchNorm3d(2)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    __init__ = constructor_of(nn.BatchNorm3d)


class LazyBatchNorm1d(LazyDropIn, _BatchNorm, nn.LazyBatchNorm1d):
    """:class:`BatchNorm1d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyBatchNorm1d)
    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(LazyDropIn, _BatchNorm, nn.LazyBatchNorm2d):
    """:class:`BatchNorm2d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyBatchNorm2d)
    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(LazyDropIn, _BatchNorm, nn.LazyBatchNorm3d):
    """:class:`BatchNorm3d` that takes ``num_features`` from its first input."""

    __init__ = constructor_of(nn.LazyBatchNorm3d)
    cls_to_become = BatchNorm3d
