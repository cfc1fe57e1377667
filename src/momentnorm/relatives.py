"""Relatives of Instance Normalization: its statistics mixed with others, or replaced by a sum.

Each layer has the parameters and buffers of its authors' code, by the same names and in the same
shapes, so that their checkpoints load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .backends import reference
from .layers import BatchNorm2d, InstanceNorm2d
from .pool import BATCH, Pool

__all__ = [
    "IBN",
    "BatchInstanceNorm2d",
    "ContrastNorm2d",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
]

_LAYER = Pool(samples=1, channels=None)


def _running(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The moments, (C,), that stand for the batch's in evaluation, where the layer has any.

    Apart from the buffers, which may move on before the backward needs these values.
    """
    if layer.training or layer.running_mean is None or layer.running_var is None:
        return None
    dtype = reference.statistics_dtype(x)
    mean, var = (
        statistic.detach().to(dtype, copy=True).flatten()
        for statistic in (layer.running_mean, layer.running_var)
    )
    return mean, var


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
        means, variances = zip(*self.kinds(mean, var), strict=True)
        return _mix(self.mean_weight, means), _mix(self.var_weight, variances)

    def kinds(self, mean: Tensor, var: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is mixed: the moments of plane, sample and batch, each broadcastable to (N, C)."""
        planes = mean, _unbiased(var, self.size)
        found = [planes] if self.size != 1 else []
        found.append(self._merged(_LAYER, *planes))
        if self.using_bn:
            found.append(self._merged(BATCH, *planes) if self.running is None else self.running)
        return found

    def of_batch(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """(C,), from the moments of the planes."""
        mean, var = self._merged(BATCH, mean, _unbiased(var, self.size))
        return mean[0], var[0]

    def _merged(self, pool: Pool, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1) or (1, C): the variance of numbers is unbiased as that of planes is."""
        grid = mean.shape
        mean, var = pool.merge(mean, var)
        if self.size == 1:
            var = _unbiased(var, grid.numel() // mean.numel())
        return mean, var


def _unbiased(var: Tensor, count: int) -> Tensor:
    """The biased variance of so many values -> the unbiased; of one value it stays 0."""
    return var * (count / (count - 1)) if count > 1 else var


def _mix(weight: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """The sum of the values in these proportions, (N, C)."""
    shares = weight.to(values[0].dtype).softmax(0).unbind()
    mixed = shares[0] * values[0]
    for share, value in zip(shares[1:], values[1:], strict=True):
        mixed = torch.addcmul(mixed, share, value)
    return mixed


class _SwitchableNorm(nn.Module):
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
        size, running = x.shape[2:].numel(), _running(self, x)
        pool = _Mixture(size, self.mean_weight, self.var_weight, self.using_bn, running)
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = using_moving_average, True, False
        super().__init__(num_features, eps, momentum, *options, device, dtype)


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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = using_moving_average, using_bn, last_gamma
        super().__init__(num_features, eps, momentum, *options, device, dtype)


class SwitchableNorm3d(_SwitchableNorm):
    """:class:`SwitchableNorm2d` of volumes, (N, C, D, H, W); the momentum is 0.997, as theirs.

    >>> SwitchableNorm3d(2)(torch.randn(2, 2, 4, 4, 4)).shape
    torch.Size([2, 2, 4, 4, 4])
    """

    _spatial_dimensions = 3


@dataclass(frozen=True, eq=False)
class _Gated:
    r"""A policy: per channel, a gate's share of batch and the rest of instance normalization.

    Both are lines in x, so their mixture is one: with the inverse deviations :math:`s_b, s_i`,

    .. math:: \rho (x - \mu_b) s_b + (1 - \rho) (x - \mu_i) s_i = (x - \mu) s, \qquad
        s = \rho s_b + (1 - \rho) s_i, \quad
        \mu = \frac{\rho s_b \mu_b + (1 - \rho) s_i \mu_i}{s}

    The variance that it returns, :math:`1 / s^2`, has eps inside.

    Args:
        gate: rho, (C,), in [0, 1].
        eps: added to both variances.
        running: the batch's moments, (C,), where they are not those of the input.
    """

    gate: Tensor
    eps: float
    running: tuple[Tensor, Tensor] | None

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        batch_mean, batch_var = BATCH.merge(mean, var) if self.running is None else self.running
        gate = self.gate.to(mean.dtype)
        of_batch = gate * torch.rsqrt(batch_var + self.eps)
        of_instance = (1 - gate) * torch.rsqrt(var + self.eps)
        inverse_std = of_batch + of_instance
        # From one of the two means, so that nothing large is divided.
        pooled_mean = mean + (batch_mean - mean) * (of_batch / inverse_std)
        return pooled_mean, inverse_std**-2


class BatchInstanceNorm2d(nn.modules.batchnorm._NormBase):
    r"""Batch-Instance Normalization: each channel learns how much style to keep.

    .. math:: y = \left(\rho \, \hat x^{(B)} + (1 - \rho) \, \hat x^{(I)}\right) \cdot \gamma
        + \beta

    where :math:`\hat x^{(B)}` is normalized over the batch, or in evaluation by the running
    statistics, and :math:`\hat x^{(I)}` over each plane (Nam and Kim, *Batch-Instance Normalization
    for Adaptively Style-Invariant Neural Networks*, arXiv 1805.07925). The gate rho is a parameter
    ``gate``, (C,), that starts at 1: batch normalization alone.

    The authors clamp the gates to [0, 1] after every step of the optimizer. Here every training
    forward begins with that (:meth:`clamp_gate`), which is the same: no forward sees another gate,
    and each step starts from a clamped one. After the last step call it once more, if the gates
    themselves are to be read; evaluation uses them clamped, and changes nothing.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in
            :class:`torch.nn.BatchNorm2d`, and so are the parameters and the buffers.

    It is no subclass of torch's BatchNorm: what replaces those by others would lose the gate.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: one pixel a plane; another number of dimensions.
        RuntimeError: another number of channels, or a dtype that does not fit the parameters'.

    >>> layer = BatchInstanceNorm2d(3)
    >>> layer(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.gate = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As torch's; and all gates open."""
        super().reset_parameters()
        if hasattr(self, "gate"):  # torch's constructor calls this before there is one
            nn.init.ones_(self.gate)

    @torch.no_grad()
    def clamp_gate(self) -> None:
        """Put every gate that has left [0, 1] back to its border."""
        self.gate.clamp_(0, 1)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(
                f"expected 4D input (got {input.dim()}D input): BatchInstanceNorm2d takes "
                "(N, C, H, W)"
            )
        count = input.shape[2:].numel()
        if count == 1:
            raise ValueError(
                f"expected more than 1 spatial element, got input size {tuple(input.shape)}: "
                "instance normalization would leave nothing of one element; use a larger input"
            )
        running = _running(self, input)
        if self.training:
            self.clamp_gate()
        # A copy, since the next forward may clamp the gate before this one's backward.
        gate = self.gate.clone().clamp(0, 1)
        y, mean, var = functional._pooled_norm(
            input, self.weight, self.bias, _Gated(gate, self.eps, running), eps=0.0
        )
        tracks = self.track_running_stats and self.running_mean is not None
        if self.training and tracks and input.numel():
            self._remember(mean, var, input.shape[0] * count)
        return y

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share: float | Tensor = (
            1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        )
        mean, var = BATCH.merge(mean, var)
        functional._move_towards(self.running_mean, mean[0], share)
        functional._move_towards(self.running_var, _unbiased(var[0], count), share)


class IBN(nn.Module):
    """Instance normalization of the first channels, batch normalization of the others.

    Of C channels the first ``int(C * ratio)`` go through an affine InstanceNorm2d, ``IN``, and the
    rest through a BatchNorm2d, ``BN`` (Pan, Luo, Shi and Tang, *Two at Once: Enhancing Learning and
    Generalization Capacities via IBN-Net*, arXiv 1807.09441). The names are those of the authors'
    checkpoints.

    Args:
        num_features: C, the number of channels.
        ratio: the share of the channels that is instance normalized.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: ``ratio`` leaves one of the two without channels, when constructed; one pixel a
            plane, in training or evaluation.
        RuntimeError: another number of channels.

    >>> IBN(4)(torch.randn(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        ratio: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        first = int(num_features * ratio)
        if not 0 < first < num_features:
            raise ValueError(
                f"ratio={ratio} of {num_features} channels is {first}: both norms need a channel; "
                "choose another ratio, or InstanceNorm2d or BatchNorm2d alone"
            )
        self.num_features = num_features
        self.instance_channels = first
        self.IN = InstanceNorm2d(first, affine=True, device=device, dtype=dtype)
        self.BN = BatchNorm2d(num_features - first, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        # Copies, in the input's own layout: half of the channels are not together in memory.
        sizes = [self.instance_channels, self.num_features - self.instance_channels]
        first, rest = (part.clone() for part in torch.split(input, sizes, 1))
        return torch.cat((self.IN(first), self.BN(rest)), 1)


class ContrastNorm2d(nn.Module):
    r"""Divide each plane by its sum: the normalization of contrast that InstanceNorm grew from.

    .. math:: y_{tijk} = \frac{x_{tijk}}{\sum_{l,m} x_{tilm} + \epsilon}

    (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
    Stylization*, arXiv 1607.08022, where there is no eps). Made of torch's own operators; it has no
    parameters.

    Args:
        eps: added to the sum. By default 0, which is the paper's equation: a plane that sums to 0
            then becomes infinite or NaN. A small eps makes a plane of zeros 0, and is meant for
            planes without negative numbers; where there are some, a sum may as well meet -eps.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    >>> ContrastNorm2d()(torch.tensor([[[[1.0, 3.0], [4.0, 2.0]]]]))
    tensor([[[[0.1000, 0.3000],
              [0.4000, 0.2000]]]])
    """

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def extra_repr(self) -> str:
        return f"eps={self.eps}"

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(
                f"expected 4D input (got {input.dim()}D input): ContrastNorm2d takes (N, C, H, W)"
            )
        dtype = reference.statistics_dtype(input)
        sums = input.sum((2, 3), keepdim=True, dtype=dtype)
        return (input / (sums + self.eps)).to(input.dtype)
