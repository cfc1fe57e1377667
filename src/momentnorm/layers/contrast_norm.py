"""Contrast Normalization: each plane divided by its sum."""

from __future__ import annotations

from torch import Tensor

from ..core.grid import statistics_dtype
from .base import Layer


class ContrastNorm2d(Layer):
    r"""Divide each plane by its sum: the normalization of contrast that InstanceNorm grew from.

    .. math:: y_{tijk} = \frac{x_{tijk}}{\sum_{l,m} x_{tilm} + \epsilon}

    (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
    Stylization*, arXiv 1607.08022, where there is no eps). Made of torch's own operators; it has no
    parameters.

    Args:
        eps: added to the sum. By default 0, which is the paper's equation: a plane that sums to 0
            then becomes infinite or NaN. A small eps makes a plane of zeros 0, and is meant for
            planes without negative numbers; where there are some, a sum may as well meet -eps.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    >>> ContrastNorm2d()(torch.tensor([[[[1.0, 3.0], [4.0, 2.0]]]]))
    tensor([[[[0.1000, 0.3000],
              [0.4000, 0.2000]]]])
    """

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def extra_repr(self) -> str:
        return f"eps={self.eps}"

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            raise ValueError(
                f"expected 4D input (got {input.dim()}D input): ContrastNorm2d takes (N, C, H, W)"
            )
        dtype = statistics_dtype(input)
        sums = input.sum((2, 3), keepdim=True, dtype=dtype)
        return (input / (sums + self.eps)).to(input.dtype)
