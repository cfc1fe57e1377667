"""Conditional Instance Normalization: scale and shift of a style, or of a mixture of styles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..core.pool import INSTANCE
from .base import Layer
from .inputs import check_dimensions, check_plane_size


class ConditionalInstanceNorm2d(Layer):
    r"""Instance Normalization with a scale and a shift for each style.

    .. math:: y = \frac{x - E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    The scale and shift of style k are :math:`\gamma = \gamma_k` and :math:`\beta = \beta_k`. Those
    of a mixture are :math:`\sum_k w_k \gamma_k` and :math:`\sum_k w_k \beta_k` (Dumoulin, Shlens
    and Kudlur, *A Learned Representation for Artistic Style*, arXiv 1610.07629).

    Args:
        num_features: C, the number of channels.
        num_styles: K, the number of styles. ``weight`` and ``bias`` are tables (K, C) that start
            at 1 and 0.
        eps: added to the variance.

    Shape:
        input (N, C, H, W). styles are labels, integers from 0 to K - 1: one for all samples, or
        (N,). Or they are floating point weights w: (K,) for all samples, or (N, K). The output has
        the shape and memory layout of the input.

    Raises:
        ValueError: another number of dimensions; planes of one pixel; styles of another shape.
        IndexError: a label outside 0, ..., K - 1.
        RuntimeError: another number of channels; a dtype that does not fit the parameters'.

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
        """Reset all styles to a weight of 1 and a bias of 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_styles={self.num_styles}, eps={self.eps}"

    def forward(self, input: Tensor, styles: Tensor | int) -> Tensor:
        check_dimensions(self, input)
        check_plane_size(input, "the output of one element is the bias alone")
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
