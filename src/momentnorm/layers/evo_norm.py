"""EvoNorm B0 and S0: normalization and activation together, found by automated search."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..core import grid
from ..core.grid import move_towards, parameter_dtype, unbiased
from ..core.pool import BATCH, Pool
from .norm_activation import NormActivation2d, over_pixels


class EvoNorm2dS0(NormActivation2d):
    r"""EvoNorm S0: a gated x divided by the deviation of its group of channels.

    .. math:: y = \frac{x \, \sigma(v x)}{\sqrt{\mathrm{Var}_{\mathrm{group}}[x] + \epsilon}}
        \cdot \gamma + \beta

    :math:`\sigma` is the sigmoid (Liu, Brock, Simonyan and Le, *Evolving Normalization-Activation
    Layers*, arXiv 2004.02967). No activation has to follow. The samples of a batch are independent.

    Args:
        num_features: C, the number of channels. ``weight`` and ``v``, (C,), start at 1, ``bias``
            at 0.
        groups: number of groups of channels, a divisor of C.
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
        x = input.to(parameter_dtype(input))
        gated = x * torch.sigmoid(over_pixels(self.v, x.dtype) * x)
        scale = grid.scale(self.weight, var, self.eps)
        shift = grid.shift(self.bias, var)
        zero = torch.zeros_like(var)
        return functional.plane_affine(gated, zero, scale, shift).to(input.dtype)


class EvoNorm2dB0(NormActivation2d):
    r"""EvoNorm B0: x divided by the larger of the batch's deviation and a line in x.

    .. math:: y = \frac{x}{\max\left(\sqrt{\mathrm{Var}_{\mathrm{batch}}[x] + \epsilon}, \
        v x + \sqrt{\mathrm{Var}_{\mathrm{plane}}[x] + \epsilon}\right)} \cdot \gamma + \beta

    (Liu, Brock, Simonyan and Le, *Evolving Normalization-Activation Layers*, arXiv 2004.02967). No
    activation has to follow. In evaluation ``running_var`` takes the place of the batch's variance.
    It holds the unbiased variance, as in :class:`torch.nn.BatchNorm2d`. There is no running mean.

    Args:
        num_features: C, the number of channels. ``weight`` and ``v``, (C,), start at 1, ``bias``
            at 0.
        eps: added to the variances.
        momentum: share of a batch in ``running_var``.

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
            _, batch_var = BATCH.merge(mean, var)  # (1, C)
            if count:
                self._update_running(unbiased(batch_var.detach()[0], count))
        else:
            batch_var = self.running_var.to(var.dtype, copy=True)
        dtype = parameter_dtype(input)
        x = input.to(dtype)
        line = over_pixels(self.v, dtype) * x + over_pixels((var + self.eps).sqrt(), dtype)
        floor = over_pixels((batch_var + self.eps).sqrt(), dtype)
        y = x / torch.maximum(floor, line)
        y = torch.addcmul(over_pixels(self.bias, dtype), y, over_pixels(self.weight, dtype))
        return y.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, var: Tensor) -> None:
        move_towards(self.running_var, var, self.momentum)
