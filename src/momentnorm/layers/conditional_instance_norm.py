"""Conditional Instance Normalization: scale and shift chosen by a label, or mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..core.pool import INSTANCE
from .base import Layer


class ConditionalInstanceNorm2d(Layer):
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
        weight, bias = self.parameters_of(styles, input.shape[0])
        return functional.pooled_norm(input, weight, bias, pool=INSTANCE, eps=self.eps)

    def parameters_of(self, styles: Tensor | int, samples: int) -> list[Tensor]:
        """Weight and bias of each of ``samples`` samples, (N, C), for the labels of a call."""
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
