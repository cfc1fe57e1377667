"""Backend: the interface of all backends.

A backend is a module with the functions of :class:`Backend`. Shapes: x, y, dx, the gradient and the
residual are feature maps (N, C, *S) of one dtype. A value of each plane is (N, C), in
:func:`momentnorm.core.grid.statistics_dtype`. Each function that takes a ``tail`` applies

.. code-block:: text

    pre_activation          = (x - mean) * scale + shift + residual
    y                       = activation(pre_activation)
    pre_activation_gradient = gradient * activation'(pre_activation)

while it reads and writes the feature map. Without an activation ``pre_activation_gradient`` is the
gradient itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..pool import INSTANCE
from ..tail import PLAIN

if TYPE_CHECKING:
    from torch import Tensor

    from ..pool import Pool
    from ..tail import Tail


class Backend(Protocol):
    """Functions that each backend has."""

    @property
    def name(self) -> str:
        """Name for :func:`momentnorm.use_backend`."""

    def refuses(
        self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> str | None:
        """Reason why this backend does not take a call with these operands, or None."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each plane, (N, C)."""

    def apply(
        self,
        x: Tensor,
        mean: Tensor,  # (N, C), and so are scale and shift
        scale: Tensor,
        shift: Tensor,
        tail: Tail = PLAIN,
        out: Tensor | None = None,  # with the shape, dtype and strides of x, or x itself
    ) -> Tensor:
        """y, in the dtype and memory layout of x."""

    def gradient_sums(
        self,
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,  # (N, C), and so are scale and shift
        scale: Tensor | None = None,  # of the forward; read only with an activation
        shift: Tensor | None = None,
        tail: Tail = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Sums over each plane, (N, C), of g and g * (x - mean), g = pre_activation_gradient."""

    def apply_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,  # (N, C), and so are a to shift
        a: Tensor,
        b: Tensor,
        c: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        tail: Tail = PLAIN,
        needs_residual: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``a * g + b * (x - mean) + c`` with g = pre_activation_gradient, and g where needed.

        g is the gradient of the residual. Both have the dtype and memory layout of x.
        """

    def normalize(
        self,
        x: Tensor,
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,  # (C,)
        eps: float,
        pool: Pool = INSTANCE,
        tail: Tail = PLAIN,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, and mean and variance of each pool, (N / samples, C / channels)."""

    def normalize_with(
        self,
        x: Tensor,
        mean: Tensor,  # (C,) of any floating dtype, and so are the next three
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        tail: Tail = PLAIN,
        out: Tensor | None = None,
    ) -> Tensor:
        """y with given moments, one of each channel."""

    def normalize_backward(
        self,
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,  # (N / samples, C / channels), and so is var
        var: Tensor,
        weight: Tensor | None,  # (C,)
        bias: Tensor | None,  # (C,); read only with an activation
        eps: float,
        pool: Pool = INSTANCE,
        tail: Tail = PLAIN,
        needs_residual: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
        """Backward of ``normalize``: dx, residual_gradient or None, dweight, dbias, sums.

        dweight and dbias, (C,), are summed over the samples. Their dtype is that of the weight,
        else of the bias, else of the statistics. For a pool of one plane, sums, (2, N, C), holds
        both results of ``gradient_sums``; for other pools it is None.
        """
