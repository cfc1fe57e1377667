"""Relatives of Instance Normalization: its statistics mixed with those of others.

Each layer has the parameters and buffers of its authors' code, by the same names and in the same
shapes, so that their checkpoints load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import functional
from .backends import reference
from .pool import Pool

__all__ = ["SwitchableNorm1d", "SwitchableNorm2d", "SwitchableNorm3d"]

_LAYER = Pool(samples=1, channels=None)
_BATCH = Pool(samples=None, channels=1)


def _copy(statistic: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,), apart from the original, which may move on before the backward needs this value."""
    return statistic.detach().to(dtype, copy=True).flatten()


#: By the number of spatial dimensions.
_SHAPES = ("(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")


@dataclass(frozen=True, eq=False)
class _Mixture:
    """A policy: the moments of plane, sample and batch, in proportions that are learned.

    Vectors (N, C) are planes of one element. Such a plane has no variance, so it takes no part.

    Args:
        size: the number of elements of a plane.
        mean_weight, var_weight: one number each for plane (but of vectors), sample and batch (but
            without ``using_bn``); the proportions are their softmax.
        using_bn: whether the batch takes part.
        running: the batch's moments, (C,), where they are not those of the input.
    """

    size: int
    mean_weight: Tensor
    var_weight: Tensor
    using_bn: bool
    running: tuple[Tensor, Tensor] | None

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        found = [self._of_sample(mean, var)]
        if self.size > 1:
            found.insert(0, (mean, var * _unbiased(self.size)))
        if self.using_bn:
            found.append(self.of_batch(mean, var) if self.running is None else self.running)
        means, variances = zip(*found, strict=True)
        return _mix(self.mean_weight, means), _mix(self.var_weight, variances)

    def _of_sample(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if self.size > 1:
            return _LAYER(mean, var * _unbiased(self.size))
        mean, var = _LAYER(mean, var)
        return mean, var * _unbiased(mean.shape[1])

    def of_batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """(C,), from the moments of the planes."""
        if self.size > 1:
            mean, var = _BATCH(mean, var * _unbiased(self.size))
        else:
            mean, var = _BATCH(mean, var)
            var = var * _unbiased(mean.shape[0])
        return mean[0], var[0]


def _unbiased(count: int) -> float:
    return count / (count - 1)


def _mix(weight: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    shares = weight.to(values[0].dtype).softmax(0)
    mixed = shares[0] * values[0]
    for share, value in zip(shares[1:], values[1:], strict=True):
        mixed = mixed + share * value
    return mixed


class _SwitchableNorm(nn.Module):
    running_mean: Tensor | None
    running_var: Tensor | None
    _spatial_dimensions: int

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float,
        using_moving_average: bool,
        using_bn: bool,
        last_gamma: bool,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.using_moving_average = using_moving_average
        self.using_bn = using_bn
        self.last_gamma = last_gamma
        per_channel = (1, num_features) + (1,) * self._spatial_dimensions
        self.weight = nn.Parameter(torch.empty(per_channel))
        self.bias = nn.Parameter(torch.empty(per_channel))
        kinds = len(self._kinds())
        self.mean_weight = nn.Parameter(torch.empty(kinds))
        self.var_weight = nn.Parameter(torch.empty(kinds))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(per_channel[:3]) if using_bn else None)
        self.reset_parameters()

    def _kinds(self) -> tuple[str, ...]:
        kinds = ("in", "ln", "bn")[not self._spatial_dimensions :]
        return kinds if self.using_bn else kinds[:-1]

    def reset_parameters(self) -> None:
        """Equal proportions, a weight of 1 (0 with ``last_gamma``), no bias, no history."""
        nn.init.constant_(self.weight, 0.0 if self.last_gamma else 1.0)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)
        for buffer in self.buffers():
            buffer.zero_()

    def mixture(self) -> dict[str, dict[str, float]]:
        """How much of each kind of statistics the layer uses: ``{"mean": {...}, "var": {...}}``.

        Each of the two says the shares of "in" (the plane's own), "ln" (the sample's) and "bn" (the
        batch's), which sum to 1. A kind that the layer does not have is missing.
        """
        return {
            name: dict(zip(self._kinds(), weight.double().softmax(0).tolist(), strict=True))
            for name, weight in (
                ("mean", self.mean_weight.detach()),
                ("var", self.var_weight.detach()),
            )
        }

    def extra_repr(self) -> str:
        options = {"using_moving_average": True, "using_bn": True, "last_gamma": False}
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}" + "".join(
            f", {name}={getattr(self, name)}"
            for name, default in options.items()
            if getattr(self, name) != default
        )

    def forward(self, input: Tensor) -> Tensor:
        x = self._checked(input)
        running = None
        if not self.training and self.running_mean is not None and self.running_var is not None:
            dtype = reference.statistics_dtype(x)
            running = _copy(self.running_mean, dtype), _copy(self.running_var, dtype)
        pool = _Mixture(
            x.shape[2:].numel(), self.mean_weight, self.var_weight, self.using_bn, running
        )
        y, mean, var = functional._pooled_norm(
            x, self.weight.flatten(), self.bias.flatten(), pool, self.eps
        )
        if self.training and self.using_bn and x.numel():
            self._remember(*pool.of_batch(mean, var))
        return y if x is input else y.squeeze(2)

    def _checked(self, input: Tensor) -> Tensor:
        """The input as a feature map (N, C, \\*S)."""
        expected = 2 + self._spatial_dimensions
        if input.dim() != expected:
            raise ValueError(
                f"expected {expected}D input (got {input.dim()}D input): {type(self).__name__} "
                f"takes {_SHAPES[self._spatial_dimensions]}"
            )
        if self._spatial_dimensions:
            if input.shape[2:].numel() == 1:
                raise ValueError(
                    f"expected more than 1 spatial element, got input size {tuple(input.shape)}: "
                    "the variance of a plane is the unbiased one here, which one element does not "
                    "have; use a larger input"
                )
            return input
        if input.shape[1] == 1:
            raise ValueError(
                f"expected more than 1 channel, got input size {tuple(input.shape)}: the variance "
                "of a sample is the unbiased one here, which one value does not have"
            )
        if self.training and input.shape[0] == 1:
            raise ValueError(
                f"expected more than 1 sample when training, got input size {tuple(input.shape)}: "
                "the variance of the batch is the unbiased one here, which one value does not "
                "have; use a larger batch, or eval()"
            )
        return input.unsqueeze(2)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.using_moving_average:
            functional._move_towards(self.running_mean.view(-1), mean, 1 - self.momentum)
            functional._move_towards(self.running_var.view(-1), var, 1 - self.momentum)
        else:
            self.running_mean.view(-1).add_(mean)
            self.running_var.view(-1).add_(var + mean.square())


class SwitchableNorm1d(_SwitchableNorm):
    """Switchable Normalization of vectors, (N, C): over the channels and over the batch.

    As :class:`SwitchableNorm2d`, but for the statistics of planes, which single numbers do not
    have: ``mean_weight`` and ``var_weight`` are of "ln" and "bn", and both variances are unbiased.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: the share that the running statistics keep, not that of the batch.
        using_moving_average: as in :class:`SwitchableNorm2d`.

    Raises:
        ValueError: another number of dimensions; one channel; in training, one sample.

    >>> SwitchableNorm1d(4)(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    _spatial_dimensions = 0

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, True, False)


class SwitchableNorm2d(_SwitchableNorm):
    r"""Switchable Normalization: learned proportions of instance, layer and batch statistics.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta, \qquad
        \mu = \sum_k w_k \mu_k, \quad \sigma^2 = \sum_k w'_k \sigma_k^2, \qquad
        k \in \{\mathrm{in}, \mathrm{ln}, \mathrm{bn}\}

    where w and w' are the softmax of ``mean_weight`` and ``var_weight`` (Luo, Ren, Peng, Zhang and
    Li, *Differentiable Learning-to-Normalize via Switchable Normalization*, arXiv 1806.10779). The
    moments "in" are those of each plane, its variance unbiased, as in the authors' code; "ln" and
    "bn" pool them over the channels and over the batch. Gradients flow through all three. In
    evaluation the running statistics stand for "bn".

    The proportions need gradients, so a training step is made of torch's own operators; without
    gradients, and where both weights are frozen, the kernels do it.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: the share that the running statistics keep, not that of the batch: torch's
            momentum is one minus this. Both start at 0.
        using_moving_average: otherwise ``running_mean`` and ``running_var`` are the sums of mu and
            of sigma^2 + mu^2 over all training batches. Evaluation takes the buffers as they are,
            so replace both by the moments of these sums before it, as the authors' tools do:
            ``running_mean / n`` and ``running_var / n - running_mean**2``, after n batches.
        using_bn: otherwise the proportions are of "in" and "ln" alone, and there are no buffers.
        last_gamma: start ``weight`` at 0, for the last layer of a residual branch.

    The parameters ``weight`` and ``bias``, (1, C, 1, 1), ``mean_weight`` and ``var_weight``, and
    the buffers ``running_mean`` and ``running_var``, (1, C, 1), are those of the authors'
    checkpoints. :meth:`mixture` tells the proportions.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: one pixel a plane, which has no unbiased variance; another number of dimensions.
        RuntimeError: another number of channels, or a dtype that does not fit the parameters'.

    >>> layer = SwitchableNorm2d(3)
    >>> layer(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    >>> layer.mean_weight.data = torch.tensor([2.0, 1.0, 1.0]).log()
    >>> {kind: round(share, 2) for kind, share in layer.mixture()["mean"].items()}
    {'in': 0.5, 'ln': 0.25, 'bn': 0.25}
    """

    _spatial_dimensions = 2

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, using_bn, last_gamma)


class SwitchableNorm3d(_SwitchableNorm):
    """:class:`SwitchableNorm2d` of volumes, (N, C, D, H, W); the momentum is 0.997, as theirs.

    >>> SwitchableNorm3d(2)(torch.randn(2, 2, 4, 4, 4)).shape
    torch.Size([2, 2, 4, 4, 4])
    """

    _spatial_dimensions = 3

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, using_bn, last_gamma)
