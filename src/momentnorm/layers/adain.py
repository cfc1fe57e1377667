"""Adaptive Instance Normalization: scale and shift from a style."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..core.grid import parameter_dtype
from ..core.pool import INSTANCE
from .base import Layer


def _check_planes(name: str, x: Tensor, spatial: str = "(N, C, *S)") -> None:
    if x.dim() < 3:
        raise ValueError(f"expected {name} as {spatial}, got shape {tuple(x.shape)}")


class AdaIN(Layer):
    r"""Adaptive Instance Normalization: content, with the mean and deviation of a style.

    .. math:: y = \sigma(s) \, \frac{x - \mu(x)}{\sigma(x)} + \mu(s)

    where both moments are those of each plane (Huang and Belongie, *Arbitrary Style Transfer in
    Real-time with Adaptive Instance Normalization*, arXiv 1703.06868). Published code disagrees
    about the two deviations:

    - ``"original"``, the authors' Lua code: :math:`\sigma^2(x) = \mathrm{Var}_n(x) + \epsilon` and
      :math:`\sigma^2(s) = \mathrm{Var}_{n-1}(s)`;
    - ``"pytorch"``, its common port: :math:`\sigma^2 = \mathrm{Var}_{n-1} + \epsilon` for both;

    where Var is divided by n or by n - 1. :class:`AdaptiveInstanceNorm2d` is the form whose scale
    and shift a network computes. AdaIN has no parameters.

    Args:
        eps: added to the variance.
        variant: "original" or "pytorch".

    Shape:
        content (N, C, \*S) and style (N, C, \*T), or (1, C, \*T) for one style of all samples;
        the output is like the content, in its memory layout. Gradients flow into both.

    Raises:
        ValueError: an unknown variant; fewer than three dimensions; other channels or another
            number of samples; one spatial element where a variance is divided by n - 1.

    >>> content, style = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[5.0, 7.0, 9.0]]])
    >>> AdaIN()(content, style)  # mean 7, deviation 2
    tensor([[[5.0000, 9.0000]]])
    """

    def __init__(self, eps: float = 1e-5, variant: str = "original") -> None:
        super().__init__()
        if variant not in ("original", "pytorch"):
            raise ValueError(f"variant must be 'original' or 'pytorch', not {variant!r}")
        self.eps = eps
        self.variant = variant

    def extra_repr(self) -> str:
        return f"eps={self.eps}, variant={self.variant!r}"

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        self._check(content, style)
        mean, var = functional.plane_moments(style)
        count = style.shape[2:].numel()
        var = var * (count / (count - 1))
        if self.variant == "pytorch":
            var = var + self.eps
        constant = var == 0  # a square root has no slope there
        deviation = var.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)
        eps = self.eps
        if self.variant == "pytorch":
            # Var_{n-1} + eps is Var_n + eps (n - 1) / n, and a factor.
            count = content.shape[2:].numel()
            rest = (count - 1) / count
            deviation, eps = deviation * rest**0.5, eps * rest
        grid, dtype = content.shape[:2], parameter_dtype(content)
        weight, bias = (values.to(dtype).expand(grid) for values in (deviation, mean))
        return functional.pooled_norm(content, weight, bias, pool=INSTANCE, eps=eps)

    def _check(self, content: Tensor, style: Tensor) -> None:
        _check_planes("the content", content)
        _check_planes("the style", style)
        if style.shape[1] != content.shape[1] or style.shape[0] not in (1, content.shape[0]):
            raise ValueError(
                f"the style {tuple(style.shape)} needs the channels of the content "
                f"{tuple(content.shape)}, and as many samples or one"
            )
        needs_more = [("style", style)]
        if self.variant == "pytorch":
            needs_more.append(("content", content))
        for name, x in needs_more:
            if x.shape[2:].numel() == 1:
                raise ValueError(
                    f"expected more than 1 spatial element in the {name}, got input size "
                    f"{tuple(x.shape)}: its variance is the unbiased one here, which one element "
                    "does not have; use a larger input"
                )


class AdaptiveInstanceNorm2d(Layer):
    r"""Instance Normalization with a scale and a shift that a network assigns, as in MUNIT.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma_{tc} + \beta_{tc}

    (Huang, Liu, Belongie and Kautz, *Multimodal Unsupervised Image-to-Image Translation*, arXiv
    1804.04732). Assign ``layer.weight`` and ``layer.bias``, (N, C) or flat (N * C,), before every
    forward, or pass them to it. They are no parameters; ``running_mean`` and ``running_var`` are
    what the authors' checkpoints contain, and nothing uses them.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: kept for the authors' signature; nothing uses it.

    Shape:
        (N, C, \*S), and the output alike, in the input's memory layout.

    Raises:
        RuntimeError: no weight and bias yet; shapes that do not fit.
        ValueError: fewer than three dimensions.

    >>> layer = AdaptiveInstanceNorm2d(2)
    >>> layer(torch.randn(3, 2, 4, 4), torch.ones(3, 2), torch.zeros(3, 2)).shape
    torch.Size([3, 2, 4, 4])
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = None
        self.bias = None
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def forward(
        self, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        _check_planes("the input", input)
        parameters = []
        for name, given in (("weight", weight), ("bias", bias)):
            values = getattr(self, name) if given is None else given
            if values is None:
                raise RuntimeError(
                    f"AdaptiveInstanceNorm2d has no {name} yet: assign layer.weight and "
                    "layer.bias, (N, C), or pass both to forward"
                )
            flat = values.dim() == 1 and values.numel() == input.shape[:2].numel()
            parameters.append(values.reshape(input.shape[:2]) if flat else values)
        return functional.pooled_norm(input, *parameters, pool=INSTANCE, eps=self.eps)
