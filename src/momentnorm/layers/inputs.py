"""Inputs: checks of shape that several layers share."""

from __future__ import annotations

from torch import Tensor, nn


def check_dimensions(layer: nn.Module, input: Tensor, form: str = "(N, C, H, W)") -> None:
    """Raise if the input has another number of dimensions than ``form``."""
    expected = form.count(",") + 1
    if input.dim() != expected:
        raise ValueError(
            f"expected {expected}D input (got {input.dim()}D input): {type(layer).__name__} takes "
            f"{form}"
        )


def check_plane_size(input: Tensor, reason: str, name: str = "") -> None:
    """Raise if the planes of a feature map, called ``name``, have one element each."""
    if input.shape[2:].numel() == 1:
        where = f" in {name}" if name else ""
        raise ValueError(
            f"expected more than 1 spatial element{where}, got input size {tuple(input.shape)}: "
            f"{reason}; use a larger input"
        )


#: Reason why a layer with unbiased variances refuses planes of one element.
NO_UNBIASED_VARIANCE = "this layer uses the unbiased variance, which one element does not have"
