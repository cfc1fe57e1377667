"""Batch-Instance Normalization: a learned gate between batch and instance statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.grid import unbiased
from ..core.pool import BATCH
from ..functional.pooled import pooled_norm_and_moments
from .base import Layer
from .inputs import check_dimensions, check_plane_size
from .running import running_moments, update_running_moments


@dataclass(frozen=True, eq=False)
class Gated:
    r"""Policy: a mixture of batch and instance normalization, by the gate of each channel.

    Both normalizations are affine maps of x, and so is their mixture. With the inverse deviations
    :math:`s_b, s_i` of batch and instance,

    .. math:: \rho (x - \mu_b) s_b + (1 - \rho) (x - \mu_i) s_i = (x - \mu) s, \qquad
        s = \rho s_b + (1 - \rho) s_i, \quad
        \mu = \frac{\rho s_b \mu_b + (1 - \rho) s_i \mu_i}{s}

    The policy returns :math:`\mu` and the variance :math:`1 / s^2`, which contains eps.

    Args:
        gate: rho, (C,), in [0, 1].
        eps: added to both variances.
        running: moments, (C,), in place of those of the batch; None for those of the batch.
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
        # A step from one mean towards the other is exact for large means, a quotient is not.
        pooled_mean = mean + (batch_mean - mean) * (of_batch / inverse_std)
        return pooled_mean, inverse_std**-2


class BatchInstanceNorm2d(Layer, nn.modules.batchnorm._NormBase):
    r"""Batch-Instance Normalization: each channel learns how much style to keep.

    .. math:: y = \left(\rho \, \hat x^{(B)} + (1 - \rho) \, \hat x^{(I)}\right) \cdot \gamma
        + \beta

    :math:`\hat x^{(B)}` is normalized over the batch, or in evaluation by the running statistics,
    and :math:`\hat x^{(I)}` over each plane (Nam and Kim, *Batch-Instance Normalization for
    Adaptively Style-Invariant Neural Networks*, arXiv 1805.07925). The gate rho is the parameter
    ``gate``, (C,). It starts at 1, which is batch normalization alone.

    The authors clamp the gates to [0, 1] after every step of the optimizer. Here every training
    forward clamps them first (:meth:`clamp_gate`), with equal results. Call it once more after the
    last step, if you want to read the gates. Evaluation clamps a copy, and does not change them.

    The class is not a subclass of torch's BatchNorm, since code that replaces those layers by
    others would lose the gate.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in
            :class:`torch.nn.BatchNorm2d`, and so are the parameters and the buffers.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: planes of one pixel; another number of dimensions.
        RuntimeError: another number of channels; a dtype that does not fit the parameters'.

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
        """Reset weight, bias and running statistics as torch does, and all gates to 1."""
        super().reset_parameters()
        if hasattr(self, "gate"):  # torch's constructor calls this before there is one
            nn.init.ones_(self.gate)

    @torch.no_grad()
    def clamp_gate(self) -> None:
        """Clamp the gates to [0, 1]."""
        self.gate.clamp_(0, 1)

    def forward(self, input: Tensor) -> Tensor:
        check_dimensions(self, input)
        check_plane_size(input, "instance normalization makes one element 0")
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
            self._update_running(mean, var, input.shape[0] * input.shape[2:].numel())
        return y

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share: float | Tensor = (
            1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        )
        mean, var = BATCH.merge(mean, var)
        update_running_moments(self, mean[0], unbiased(var[0], count), share)
