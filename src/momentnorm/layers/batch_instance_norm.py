"""Batch-Instance Normalization: a learned gate between batch and instance statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.grid import move_towards, unbiased
from ..core.pool import BATCH
from ..functional.pooled import pooled_norm_and_moments
from .base import Layer
from .running import running_moments


@dataclass(frozen=True, eq=False)
class Gated:
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


class BatchInstanceNorm2d(Layer, nn.modules.batchnorm._NormBase):
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
        running = running_moments(self, input)
        if self.training:
            self.clamp_gate()
        # A copy, since the next forward may clamp the gate before this one's backward.
        gate = self.gate.clone().clamp(0, 1)
        y, mean, var = pooled_norm_and_moments(
            input, self.weight, self.bias, Gated(gate, self.eps, running), eps=0.0
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
        move_towards(self.running_mean, mean[0], share)
        move_towards(self.running_var, unbiased(var[0], count), share)
