"""Contrast Normalization: each plane divided by its sum."""

from __future__ import annotations

from torch import Tensor

from ..core.grid import statistics_dtype
from .base import Layer
from .inputs import check_dimensions


class ContrastNorm2d(Layer):
    r"""Contrast Normalization: divide each plane by its sum, the precursor of InstanceNorm.

    .. math:: y_{tijk} = \frac{x_{tijk}}{\sum_{l,m} x_{tilm} + \epsilon}

    (Ulyanov, Vedaldi and Lempitsky, *Instance Normalization: The Missing Ingredient for Fast
    Stylization*, arXiv 1607.08022). The layer has no parameters. It calls torch's own operators.

    Args:
        eps: added to the sum. The default 0 is the paper's equation, in which a plane that sums to
            0 becomes infinite or NaN. With a small eps a plane of zeros stays 0. An eps is for
            planes without negative numbers. With negative numbers the sum can be -eps.

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
        check_dimensions(self, input)
        dtype = statistics_dtype(input)
        sums = input.sum((2, 3), keepdim=True, dtype=dtype)
        return (input / (sums + self.eps)).to(input.dtype)
