"""Switchable Normalization: a learned mixture of instance, layer and batch statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.grid import unbiased
from ..core.pool import BATCH, Pool
from ..functional.pooled import pooled_norm_and_moments
from .base import Layer
from .inputs import NO_UNBIASED_VARIANCE, check_dimensions, check_plane_size
from .running import running_moments, update_running_moments

_LAYER = Pool(samples=1, channels=None)

#: Forms of the input, by the number of spatial dimensions.
_FORMS = ("(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Policy: a mixture of the moments of plane, sample and batch in learned proportions.

    Vectors (N, C) are planes of one element. Such a plane has no variance, so the mixture is of
    sample and batch.

    Args:
        size: number of elements of a plane.
        mean_weight, var_weight: one number for each kind of moments, in the order plane, sample,
            batch. The proportions are their softmax.
        using_bn: whether the moments of the batch are part of the mixture.
        running: moments, (C,), in place of those of the batch; None for those of the batch.
    """

    size: int
    mean_weight: Tensor
    var_weight: Tensor
    using_bn: bool
    running: tuple[Tensor, Tensor] | None

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        means, variances = zip(*self.kinds(mean, var), strict=True)
        return _mix(self.mean_weight, means), _mix(self.var_weight, variances)

    def kinds(self, mean: Tensor, var: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Moments of plane, sample and batch, each broadcastable to (N, C), before the mixture."""
        planes = mean, unbiased(var, self.size)
        found = [planes] if self.size != 1 else []
        found.append(self._merged(_LAYER, *planes))
        if self.using_bn:
            found.append(self._merged(BATCH, *planes) if self.running is None else self.running)
        return found

    def of_batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the batch, (C,), from the moments of the planes."""
        mean, var = self._merged(BATCH, mean, unbiased(var, self.size))
        return mean[0], var[0]

    def _merged(self, pool: Pool, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of each sample, (N, 1), or of each channel, (1, C), from those of planes.

        For planes of one element the pooled variance is made unbiased.
        """
        grid = mean.shape
        mean, var = pool.merge(mean, var)
        if self.size == 1:
            var = unbiased(var, grid.numel() // mean.numel())
        return mean, var


def _mix(weight: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """Sum of the values, weighted with the softmax of ``weight``, (N, C)."""
    shares = weight.to(values[0].dtype).softmax(0).unbind()
    mixed = shares[0] * values[0]
    for share, value in zip(shares[1:], values[1:], strict=True):
        mixed = torch.addcmul(mixed, share, value)
    return mixed


class SwitchableNorm(Layer):
    """Base of the three layers of Switchable Normalization."""

    running_mean: Tensor | None
    running_var: Tensor | None
    _spatial_dimensions: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.using_moving_average = using_moving_average
        self.using_bn = using_bn
        self.last_gamma = last_gamma
        per_channel = (1, num_features) + (1,) * self._spatial_dimensions

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        self.weight = nn.Parameter(empty(*per_channel))
        self.bias = nn.Parameter(empty(*per_channel))
        kinds = len(self._kinds())
        self.mean_weight = nn.Parameter(empty(kinds))
        self.var_weight = nn.Parameter(empty(kinds))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, empty(*per_channel[:3]) if using_bn else None)
        self.reset_parameters()

    def _kinds(self) -> tuple[str, ...]:
        kinds = ("in", "ln", "bn")[not self._spatial_dimensions :]
        return kinds if self.using_bn else kinds[:-1]

    def reset_parameters(self) -> None:
        """Reset to equal proportions, weight 1 (0 with ``last_gamma``), bias 0 and buffers of 0."""
        nn.init.constant_(self.weight, 0.0 if self.last_gamma else 1.0)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)
        for buffer in self.buffers():
            buffer.zero_()

    def mixture(self) -> dict[str, dict[str, float]]:
        """Proportions of the mixture: ``{"mean": {...}, "var": {...}}``.

        Each of the two dictionaries has the shares of "in" (plane), "ln" (sample) and "bn" (batch),
        which sum to 1. Kinds that the layer does not use are missing.
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
        size, running = x.shape[2:].numel(), running_moments(self, x)
        pool = Mixture(size, self.mean_weight, self.var_weight, self.using_bn, running)
        y, mean, var = pooled_norm_and_moments(
            x, self.weight.flatten(), self.bias.flatten(), pool, self.eps
        )
        if self.training and self.using_bn and x.numel():
            self._update_running(*pool.of_batch(mean, var))
        return y if x is input else y.squeeze(2)

    def _checked(self, input: Tensor) -> Tensor:
        """The input as a feature map (N, C, \\*S)."""
        check_dimensions(self, input, _FORMS[self._spatial_dimensions])
        if self._spatial_dimensions:
            check_plane_size(input, NO_UNBIASED_VARIANCE)
            return input
        if input.shape[1] == 1:
            raise ValueError(
                f"expected more than 1 channel, got input size {tuple(input.shape)}: "
                f"{NO_UNBIASED_VARIANCE}; use more channels"
            )
        if self.training and input.shape[0] == 1:
            raise ValueError(
                f"expected more than 1 sample when training, got input size {tuple(input.shape)}: "
                f"{NO_UNBIASED_VARIANCE}; use a larger batch, or eval()"
            )
        return input.unsqueeze(2)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        if self.using_moving_average:
            update_running_moments(self, mean, var, 1 - self.momentum)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.view(-1).add_(mean)
            self.running_var.view(-1).add_(var + mean.square())


class SwitchableNorm1d(SwitchableNorm):
    """Switchable Normalization of vectors, (N, C).

    The equation is that of :class:`SwitchableNorm2d` without "in", since a plane of one element has
    no variance. So ``mean_weight`` and ``var_weight`` have two numbers, for "ln" and "bn". Both
    variances are unbiased.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: share of the old running statistics that stays, one minus torch's momentum.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = using_moving_average, True, False
        super().__init__(num_features, eps, momentum, *options, device, dtype)


class SwitchableNorm2d(SwitchableNorm):
    r"""Switchable Normalization: learned proportions of instance, layer and batch statistics.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta, \qquad
        \mu = \sum_k w_k \mu_k, \quad \sigma^2 = \sum_k w'_k \sigma_k^2, \qquad
        k \in \{\mathrm{in}, \mathrm{ln}, \mathrm{bn}\}

    The proportions w and w' are the softmax of ``mean_weight`` and ``var_weight`` (Luo, Ren, Peng,
    Zhang and Li, *Differentiable Learning-to-Normalize via Switchable Normalization*, arXiv
    1806.10779). The moments "in" are those of each plane, with the unbiased variance, as in the
    authors' code. The moments "ln" and "bn" pool them over the channels and over the batch.
    Gradients flow through all three. In evaluation the running statistics take the place of "bn".
    :meth:`mixture` returns the proportions.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: share of the old running statistics that stays, one minus torch's momentum. The
            running statistics start at 0.
        using_moving_average: whether the buffers are moving averages. With False ``running_mean``
            and ``running_var`` are the sums of mu and of sigma^2 + mu^2 over all training batches.
            Evaluation uses the buffers as they are. So after n batches divide both by n, then
            subtract ``running_mean**2`` from ``running_var``, as the authors' tools do.
        using_bn: whether "bn" is part of the mixture. With False there are no buffers.
        last_gamma: whether ``weight`` starts at 0, for the last layer of a residual branch.

    The parameters ``weight`` and ``bias``, (1, C, 1, 1), ``mean_weight`` and ``var_weight``, and
    the buffers ``running_mean`` and ``running_var``, (1, C, 1), have the names and shapes of the
    authors' checkpoints.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: planes of one pixel, which have no unbiased variance; another number of
            dimensions.
        RuntimeError: another number of channels; a dtype that does not fit the parameters'.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = using_moving_average, using_bn, last_gamma
        super().__init__(num_features, eps, momentum, *options, device, dtype)


class SwitchableNorm3d(SwitchableNorm):
    """:class:`SwitchableNorm2d` for volumes, (N, C, D, H, W), with the authors' momentum of 0.997.

    >>> SwitchableNorm3d(2)(torch.randn(2, 2, 4, 4, 4)).shape
    torch.Size([2, 2, 4, 4, 4])
    """

    _spatial_dimensions = 3
