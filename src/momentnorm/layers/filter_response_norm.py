"""Filter Response Normalization: division by the root mean square, then a threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from .norm_activation import NormActivation2d, over_pixels


class FilterResponseNorm2d(NormActivation2d):
    r"""Filter Response Normalization, with the thresholded linear unit that follows it.

    .. math:: y = \max\left(\frac{x}{\sqrt{E[x^2] + |\epsilon|}} \cdot \gamma + \beta, \ \tau
        \right)

    The mean is that of each plane (Singh and Krishnan, *Filter Response Normalization Layer:
    Eliminating Batch Dependence in the Training of Deep Neural Networks*, arXiv 1911.09737). The
    threshold tau takes the place of an activation. As a policy the layer returns the mean 0 and the
    variance :math:`\mathrm{Var}[x] + E[x]^2`, which is :math:`E[x^2]`.

    Args:
        num_features: C, the number of channels. ``weight``, (C,), starts at 1, ``bias`` and ``tau``
            at 0.
        eps: added to the mean square.
        learnable_eps: make eps a parameter, (1,), as the authors do for small planes. With a tiny
            eps a plane of one element would become the sign of that element.
        threshold: whether the threshold tau follows; False is the normalization alone.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: another number of dimensions.
        RuntimeError: another number of channels; a dtype that does not fit the parameters'.

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
        learned_eps = getattr(self, "learned_eps", None)  # the base calls this before it exists
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
        return torch.maximum(y, over_pixels(self.tau, y.dtype)) if self.threshold else y
