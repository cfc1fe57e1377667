"""Normalization and activation as one layer: Filter Response Normalization, and EvoNorms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import functional
from .backends import reference
from .pool import BATCH, Pool

__all__ = ["EvoNorm2dB0", "EvoNorm2dS0", "FilterResponseNorm2d"]


class _NormActivation2d(nn.Module):
    #: The parameters, (C,), and what they start at.
    _starts: dict[str, float]
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name in self._starts:
            values = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self._starts.items():
            nn.init.constant_(self.get_parameter(name), value)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _check(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(
                f"expected 4D input (got {input.dim()}D input): {type(self).__name__} takes "
                "(N, C, H, W)"
            )
        if input.shape[1] != self.num_features:
            raise RuntimeError(
                f"{type(self).__name__}({self.num_features}) takes {self.num_features} channels, "
                f"not the {input.shape[1]} of {tuple(input.shape)}"
            )


def _of_channels(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) or (N, C) -> what broadcasts over (N, C, H, W), in the dtype of the arithmetic."""
    return values.to(dtype)[..., None, None]


class FilterResponseNorm2d(_NormActivation2d):
    r"""Filter Response Normalization with its thresholded linear unit.

    .. math:: y = \max\left(\frac{x}{\sqrt{E[x^2] + |\epsilon|}} \cdot \gamma + \beta, \ \tau
        \right)

    where the mean is that of each plane (Singh and Krishnan, *Filter Response Normalization Layer:
    Eliminating Batch Dependence in the Training of Deep Neural Networks*, arXiv 1911.09737). The
    threshold tau takes the place of the activation that would follow. It is the policy (0, Var +
    E^2), whose terms are both positive.

    Args:
        num_features: C. ``weight``, (C,), starts at 1; ``bias`` and ``tau`` at 0.
        eps: added to the mean square.
        learnable_eps: make eps a parameter, (1,), as the authors do where planes are small (of one
            element x / sqrt(x^2 + eps) is otherwise a sign).
        threshold: False leaves tau out, and is the normalization alone.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: another number of dimensions.
        RuntimeError: another number of channels, or a dtype that does not fit the parameters'.

    >>> x = torch.tensor([[[[-1.0, 2.0], [2.0, 4.0]]]])  # E[x^2] = 6.25
    >>> FilterResponseNorm2d(1)(x).detach()
    tensor([[[[0.0000, 0.8000],
              [0.8000, 1.6000]]]])
    """

    tau: Tensor
    learned_eps: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learnable_eps: bool = False,
        threshold: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._starts = {"weight": 1.0, "bias": 0.0} | ({"tau": 0.0} if threshold else {})
        super().__init__(num_features, eps, device, dtype)
        self.threshold = threshold
        self.learnable_eps = learnable_eps
        start = torch.full((1,), eps, device=device, dtype=dtype)
        self.register_parameter("learned_eps", nn.Parameter(start) if learnable_eps else None)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        learned_eps = getattr(self, "learned_eps", None)  # none yet in the constructor
        if learned_eps is not None:
            nn.init.constant_(learned_eps, self.eps)

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        learned_eps = self.learned_eps

        def mean_square(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            square = var + mean.square()
            if learned_eps is not None:
                square = square + learned_eps.abs().to(var.dtype)
            return torch.zeros_like(mean), square

        eps = 0.0 if self.learnable_eps else abs(self.eps)
        y = functional.pooled_norm(input, self.weight, self.bias, pool=mean_square, eps=eps)
        return torch.maximum(y, _of_channels(self.tau, y.dtype)) if self.threshold else y


class EvoNorm2dS0(_NormActivation2d):
    r"""EvoNorm S0: a gated x over the deviation of its group; no batch, no activation after it.

    .. math:: y = \frac{x \, \sigma(v x)}{\sqrt{\mathrm{Var}_{\mathrm{group}}[x] + \epsilon}}
        \cdot \gamma + \beta

    where :math:`\sigma` is the sigmoid (Liu, Brock, Simonyan and Le, *Evolving
    Normalization-Activation Layers*, arXiv 2004.02967).

    Args:
        num_features: C. ``weight`` and ``v``, (C,), start at 1; ``bias`` at 0.
        groups: of channels, a divisor of C.
        eps: added to the variance.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: ``groups`` does not divide C; another number of dimensions.
        RuntimeError: another number of channels.

    >>> EvoNorm2dS0(64)(torch.randn(2, 64, 8, 8)).shape
    torch.Size([2, 64, 8, 8])
    """

    _starts = {"weight": 1.0, "bias": 0.0, "v": 1.0}  # noqa: RUF012
    v: Tensor

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups < 1 or num_features % groups:
            raise ValueError(
                f"groups={groups} does not divide {num_features} channels: choose a divisor"
            )
        super().__init__(num_features, eps, device, dtype)
        self.groups = groups

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, eps={self.eps}"

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        mean, var = functional.plane_moments(input)
        _, var = Pool(samples=1, channels=self.num_features // self.groups)(mean, var)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        gated = x * torch.sigmoid(_of_channels(self.v, x.dtype) * x)
        scale = reference.scale(self.weight, var, self.eps)
        shift = reference.shift(self.bias, var)
        zero = torch.zeros_like(var)
        return functional.plane_affine(gated, zero, scale, shift).to(input.dtype)


class EvoNorm2dB0(_NormActivation2d):
    r"""EvoNorm B0: x over the larger of the batch's deviation and a line in x.

    .. math:: y = \frac{x}{\max\left(\sqrt{\mathrm{Var}_{\mathrm{batch}}[x] + \epsilon}, \
        v x + \sqrt{\mathrm{Var}_{\mathrm{plane}}[x] + \epsilon}\right)} \cdot \gamma + \beta

    (Liu, Brock, Simonyan and Le, *Evolving Normalization-Activation Layers*, arXiv 2004.02967). In
    evaluation ``running_var`` stands for the batch's variance; it holds the unbiased one, as
    :class:`torch.nn.BatchNorm2d`'s does, and there is no running mean.

    Args:
        num_features: C. ``weight`` and ``v``, (C,), start at 1; ``bias`` at 0.
        eps: added to the variances.
        momentum: the share that a batch has in ``running_var``.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: another number of dimensions; in training, one value per channel.
        RuntimeError: another number of channels.

    >>> EvoNorm2dB0(3)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    _starts = {"weight": 1.0, "bias": 0.0, "v": 1.0}  # noqa: RUF012
    v: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, device, dtype)
        self.momentum = momentum
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for buffer in self.buffers():
            buffer.fill_(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}"

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        count = input.shape[0] * input.shape[2:].numel()
        if self.training and count == 1:
            raise ValueError(
                f"expected more than 1 value per channel when training, got input size "
                f"{tuple(input.shape)}: one value has no variance; use a larger batch, or eval()"
            )
        mean, var = functional.plane_moments(input)
        if self.training:
            _, of_batch = BATCH.merge(mean, var)  # (1, C)
            if count:
                self._remember(of_batch.detach()[0] * (count / (count - 1)))
        else:
            of_batch = self.running_var.to(var.dtype, copy=True)
        dtype = torch.promote_types(input.dtype, torch.float32)
        x = input.to(dtype)
        line = _of_channels(self.v, dtype) * x + _of_channels((var + self.eps).sqrt(), dtype)
        floor = _of_channels((of_batch + self.eps).sqrt(), dtype)
        y = x / torch.maximum(floor, line)
        y = torch.addcmul(_of_channels(self.bias, dtype), y, _of_channels(self.weight, dtype))
        return y.to(input.dtype)

    @torch.no_grad()
    def _remember(self, var: Tensor) -> None:
        functional._move_towards(self.running_var, var, self.momentum)
