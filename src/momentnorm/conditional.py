"""Instance Normalization whose scale and shift come from outside: an image, a label, a map.

All of them are one call of the engine with a weight and a bias of each sample, (N, C); only SPADE's
are of each pixel. Parameters and buffers are those of the authors' code, by the same names, so that
their checkpoints load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional
from .layers import BatchNorm2d, InstanceNorm2d
from .pool import INSTANCE

__all__ = ["SPADE", "AdaIN", "AdaptiveInstanceNorm2d", "ConditionalInstanceNorm2d"]


def _parameter_dtype(x: Tensor) -> torch.dtype:
    """Of a computed weight: the input's, or float32 with a half type."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_planes(name: str, x: Tensor, spatial: str = "(N, C, *S)") -> None:
    if x.dim() < 3:
        raise ValueError(f"expected {name} as {spatial}, got shape {tuple(x.shape)}")


class AdaIN(nn.Module):
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
        grid, dtype = content.shape[:2], _parameter_dtype(content)
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


class AdaptiveInstanceNorm2d(nn.Module):
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


class ConditionalInstanceNorm2d(nn.Module):
    r"""Instance Normalization with a scale and a shift of each style, chosen by label or mixed.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma_k + \beta_k,
        \qquad \text{or} \quad \sum_k w_k \gamma_k, \ \sum_k w_k \beta_k

    (Dumoulin, Shlens and Kudlur, *A Learned Representation for Artistic Style*, arXiv 1610.07629).

    Args:
        num_features: C, the number of channels.
        num_styles: K; ``weight`` and ``bias`` are tables (K, C) that start at 1 and 0.
        eps: added to the variance.

    Shape:
        input (N, C, H, W); styles, a label for all samples, or labels (N,), integers below K; or
        weights (K,) or (N, K), in floating point. The output is like the input, in its layout.

    Raises:
        ValueError: another number of dimensions; one pixel a plane; styles of another shape.
        IndexError: a label outside 0, ..., K - 1.
        RuntimeError: another number of channels, or a dtype that does not fit the parameters'.

    >>> layer = ConditionalInstanceNorm2d(3, num_styles=2)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> layer(x, torch.tensor([0, 1])).shape, layer(x, torch.tensor([0.3, 0.7])).shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        num_features: int,
        num_styles: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_styles = num_styles
        self.eps = eps
        table = num_styles, num_features
        self.weight = nn.Parameter(torch.empty(table, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(table, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All styles alike: a weight of 1, no bias."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_styles={self.num_styles}, eps={self.eps}"

    def forward(self, input: Tensor, styles: Tensor | int) -> Tensor:
        if input.dim() != 4:
            raise ValueError(
                f"expected 4D input (got {input.dim()}D input): ConditionalInstanceNorm2d takes "
                "(N, C, H, W)"
            )
        if input.shape[2:].numel() == 1:
            raise ValueError(
                f"expected more than 1 spatial element, got input size {tuple(input.shape)}: "
                "nothing but the bias would be left of one; use a larger input"
            )
        weight, bias = self._of_samples(styles, input.shape[0])
        return functional.pooled_norm(input, weight, bias, pool=INSTANCE, eps=self.eps)

    def _of_samples(self, styles: Tensor | int, samples: int) -> list[Tensor]:
        """The weight and the bias of each sample, (N, C)."""
        if not isinstance(styles, Tensor):
            styles = torch.tensor(styles, device=self.weight.device)
        mixed = styles.is_floating_point()
        shapes = [(self.num_styles,), (samples, self.num_styles)] if mixed else [(), (samples,)]
        if styles.shape not in shapes or styles.is_complex() or styles.dtype == torch.bool:
            raise ValueError(
                f"expected integer labels, () or {(samples,)}, or floating point weights, "
                f"{(self.num_styles,)} or {(samples, self.num_styles)}; got {styles.dtype} of "
                f"shape {tuple(styles.shape)}"
            )
        tables = self.weight, self.bias
        if mixed:
            found = [styles.to(table.dtype) @ table for table in tables]
        else:
            if styles.device.type == "cpu" and styles.numel() and not torch.compiler.is_compiling():
                lowest, highest = styles.aminmax()
                if lowest < 0 or highest >= self.num_styles:
                    raise IndexError(
                        f"labels lie between 0 and {self.num_styles - 1}, the styles of this "
                        f"layer, not {lowest.item()} to {highest.item()}"
                    )
            found = [F.embedding(styles.long(), table) for table in tables]
        return [values.expand(samples, self.num_features) for values in found]


class SPADE(nn.Module):
    r"""Spatially-adaptive denormalization: scale and shift of each pixel, from a segmentation map.

    .. math:: y = \mathrm{norm}(x) \cdot (1 + \gamma(m)) + \beta(m)

    where norm has no parameters, and gamma and beta are convolutions of a hidden layer
    ``relu(conv(m))`` of the map m, resized to x by nearest neighbours (Park, Liu, Wang and Zhu,
    *Semantic Image Synthesis with Spatially-Adaptive Normalization*, arXiv 1903.07291).

    Args:
        num_features: C, the channels of x.
        label_channels: the channels of the map, say one for each class.
        norm: "instance" or "batch". For synchronized statistics take "batch" and convert the
            model by :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm`.
        hidden_channels: of the hidden layer.
        kernel_size: of all three convolutions, odd.

    The names ``param_free_norm``, ``mlp_shared``, ``mlp_gamma`` and ``mlp_beta`` are those of the
    authors' checkpoints.

    Shape:
        input (N, C, H, W) and map (N, label_channels, any height, any width), in floating point;
        the output is like the input.

    Raises:
        ValueError: an unknown norm; an even kernel; an input or a map of another rank; a map of
            integers.

    >>> SPADE(4, label_channels=3)(torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        label_channels: int,
        norm: str = "instance",
        hidden_channels: int = 128,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} is even: an odd one keeps the size")
        norms = {"instance": InstanceNorm2d, "batch": BatchNorm2d}
        if norm not in norms:
            raise ValueError(f"norm must be 'instance' or 'batch', not {norm!r}")
        self.param_free_norm = norms[norm](num_features, affine=False, device=device, dtype=dtype)

        def convolution(inputs: int, outputs: int) -> nn.Conv2d:
            padding = kernel_size // 2
            return nn.Conv2d(
                inputs, outputs, kernel_size, padding=padding, device=device, dtype=dtype
            )

        self.mlp_shared = nn.Sequential(convolution(label_channels, hidden_channels), nn.ReLU())
        self.mlp_gamma = convolution(hidden_channels, num_features)
        self.mlp_beta = convolution(hidden_channels, num_features)

    def forward(self, input: Tensor, map: Tensor) -> Tensor:
        if input.dim() != 4 or map.dim() != 4:
            raise ValueError(
                "SPADE takes an input (N, C, H, W) and a map (N, label_channels, H, W), got shapes "
                f"{tuple(input.shape)} and {tuple(map.shape)}"
            )
        if not map.is_floating_point():
            raise ValueError(
                f"the map is {map.dtype}: pass one channel for each class, in floating point, "
                "as torch.nn.functional.one_hot(labels).movedim(-1, 1).float()"
            )
        hidden = self.mlp_shared(F.interpolate(map, size=input.shape[2:], mode="nearest"))
        gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        y: Tensor = torch.addcmul(beta, self.param_free_norm(input), 1 + gamma)
        return y
