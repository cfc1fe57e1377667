"""Base of the layers that are a norm and an activation together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Layer
from .inputs import check_dimensions


class NormActivation2d(Layer):
    """Parameters and checks of a layer that is a norm and an activation together."""

    #: Names of the parameters, (C,), and their initial values.
    _starts: dict[str, float]
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name in self._starts:
            values = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, value in self._starts.items():
            nn.init.constant_(self.get_parameter(name), value)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _check(self, input: Tensor) -> None:
        check_dimensions(self, input)
        if input.shape[1] != self.num_features:
            raise RuntimeError(
                f"{type(self).__name__}({self.num_features}) takes {self.num_features} channels, "
                f"got {input.shape[1]} in an input of shape {tuple(input.shape)}"
            )


def over_pixels(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(C,) or (N, C) -> (C, 1, 1) or (N, C, 1, 1), to broadcast over (N, C, H, W)."""
    return values.to(dtype)[..., None, None]
