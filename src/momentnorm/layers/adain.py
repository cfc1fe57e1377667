"""Adaptive Instance Normalization: scale and shift from a style or from a network."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..core.grid import parameter_dtype, unbiased
from ..core.pool import INSTANCE
from .base import Layer
from .inputs import NO_UNBIASED_VARIANCE, check_plane_size


def _check_feature_map(name: str, x: Tensor) -> None:
    if x.dim() < 3:
        raise ValueError(
            f"expected {name} as (N, C, *S), got shape {tuple(x.shape)}: add the missing dimensions"
        )


class AdaIN(Layer):
    r"""Adaptive Instance Normalization: content with the mean and deviation of a style.

    .. math:: y = \sigma(s) \, \frac{x - \mu(x)}{\sigma(x)} + \mu(s)

    The moments are those of each plane of the content x and of the style s (Huang and Belongie,
    *Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization*, arXiv 1703.06868).
    Published code has two forms of the deviations. Var is divided by n or by n - 1:

    - ``"original"``, the authors' Lua code: :math:`\sigma^2(x) = \mathrm{Var}_n(x) + \epsilon` and
      :math:`\sigma^2(s) = \mathrm{Var}_{n-1}(s)`;
    - ``"pytorch"``, its common port: :math:`\sigma^2 = \mathrm{Var}_{n-1} + \epsilon` for both.

    AdaIN has no parameters. :class:`AdaptiveInstanceNorm2d` is the form whose scale and shift a
    network computes.

    Args:
        eps: added to the variance.
        variant: "original" or "pytorch".

    Shape:
        content (N, C, \*S) and style (N, C, \*T), or (1, C, \*T) for one style of all samples. The
        output has the shape and memory layout of the content. Gradients flow into both.

    Raises:
        ValueError: an unknown variant; fewer than three dimensions; a style with another number of
            channels or samples; one spatial element where a variance is divided by n - 1.

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
        var = unbiased(var, style.shape[2:].numel())
        if self.variant == "pytorch":
            var = var + self.eps
        constant = var == 0  # the derivative of the square root is infinite there
        deviation = var.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)
        eps = self.eps
        if self.variant == "pytorch":
            # Var_{n-1} + eps = (Var_n + eps (n - 1) / n) n / (n - 1).
            count = content.shape[2:].numel()
            rest = (count - 1) / count
            deviation, eps = deviation * rest**0.5, eps * rest
        grid, dtype = content.shape[:2], parameter_dtype(content)
        weight, bias = (values.to(dtype).expand(grid) for values in (deviation, mean))
        return functional.pooled_norm(content, weight, bias, pool=INSTANCE, eps=eps)

    def _check(self, content: Tensor, style: Tensor) -> None:
        _check_feature_map("the content", content)
        _check_feature_map("the style", style)
        if style.shape[1] != content.shape[1] or style.shape[0] not in (1, content.shape[0]):
            raise ValueError(
                f"the style {tuple(style.shape)} needs the channels of the content "
                f"{tuple(content.shape)}, and as many samples or one"
            )
        check_plane_size(style, NO_UNBIASED_VARIANCE, "the style")
        if self.variant == "pytorch":
            check_plane_size(content, NO_UNBIASED_VARIANCE, "the content")


class AdaptiveInstanceNorm2d(Layer):
    r"""Instance Normalization with a scale and a shift that a network assigns, as in MUNIT.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma_{tc} + \beta_{tc}

    (Huang, Liu, Belongie and Kautz, *Multimodal Unsupervised Image-to-Image Translation*, arXiv
    1804.04732). Assign ``layer.weight`` and ``layer.bias``, (N, C) or flat (N * C,), before every
    forward, or pass them to it. They are not parameters of the layer. The buffers ``running_mean``
    and ``running_var`` are there to load the authors' checkpoints. Nothing uses them.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance.
        momentum: kept for the authors' signature. Nothing uses it.

    Shape:
        (N, C, \*S), and the output alike, in the input's memory layout.

    Raises:
        RuntimeError: a missing weight or bias; a weight or bias of another shape.
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
        _check_feature_map("the input", input)
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
