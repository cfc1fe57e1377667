"""Stylization: a photograph through the trunk, at its own size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..support.machine import available_memory, is_out_of_memory
from .errors import StylizeError
from .features import luminance
from .grain import add_grain, still_grain
from .styles import Style
from .trunk import STRIDE

if TYPE_CHECKING:
    from collections.abc import Callable

#: Pixels reflected beyond each edge and cut off again: zero padding then stays far outside.
MARGIN = 16

#: Peak memory of a pass through a trunk, bytes per pixel and unit of width (measured).
BYTES_PER_PIXEL = 8


def stylize(
    image: Tensor,
    style: Style | Callable[[Tensor], Tensor],
    *,
    strength: float = 1.0,
    keep_color: bool = False,
) -> Tensor:
    """Paint an image in a style, on the image's device.

    Args:
        image: (3, H, W) or (N, 3, H, W), floating point in [0, 1]; any H and W.
        style: a style from :func:`load_style` or :func:`learn`, or a network of stride 4.
        strength: 1 is the style alone, 0 the photograph itself, in between a mixture.
        keep_color: take the luminance of the picture and the chroma of the photograph.

    Returns:
        A tensor of the image's shape and dtype, in [0, 1].

    Raises:
        StylizeError: another shape, a strength outside [0, 1], or no memory for this size.
    """
    if image.dim() not in (3, 4) or image.shape[-3] != 3 or image.numel() == 0:
        raise StylizeError(
            f"an image has shape (3, H, W) or (N, 3, H, W), not {tuple(image.shape)}: "
            "convert it to RGB, channels first"
        )
    if not 0 <= strength <= 1:
        raise StylizeError(f"strength is between 0 and 1, not {strength}")
    if isinstance(style, Style):
        strength *= style.strength
    if strength == 0:
        return image.clone()
    batch = image if image.dim() == 4 else image.unsqueeze(0)
    # Weights are converted in place, and half precision would take digits from them for good.
    batch = batch.to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    if isinstance(style, Style):
        _check_memory(style.trunk.shape.width, batch)
    try:
        with torch.inference_mode():
            picture = _paint(batch, style)
            if keep_color:
                # The change of luminance is added to every channel. The differences between
                # channels, and so the chroma, stay.
                picture = (batch + luminance(picture) - luminance(batch)).clamp_(0, 1)
            if strength < 1:
                picture = torch.lerp(batch, picture, strength)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StylizeError(_out_of_memory(*batch.shape[-2:])) from error
    # A copy outside inference mode is an ordinary tensor, which autograd accepts.
    return picture.to(image.dtype, copy=True).reshape(image.shape)


def _paint(batch: Tensor, style: Style | Callable[[Tensor], Tensor]) -> Tensor:
    """Picture of the style alone, (N, 3, H, W)."""
    if not isinstance(style, Style):
        if isinstance(style, nn.Module):
            style.to(batch.device, batch.dtype)
        return through(style, batch)
    trunk = style.trunk.to(batch.device, batch.dtype)
    vector = style.vector.to(batch)
    grained = add_grain(batch, still_grain(*batch.shape[-2:]))
    grained = grained.contiguous(memory_format=torch.channels_last)
    return through(lambda wide: trunk(wide, vector), grained)


def _out_of_memory(height: int, width: int, factor: float = 0.5) -> str:
    size = max(1, int(factor * max(height, width)))
    return f"not enough memory for {width}x{height} pixels; make it smaller with --size {size}"


def through(network: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Run a network of stride 4 on (N, 3, H, W), with a reflected margin that is cut off."""
    height, width = batch.shape[-2:]
    rows = reflected(height, MARGIN, MARGIN + -height % STRIDE).to(batch.device)
    columns = reflected(width, MARGIN, MARGIN + -width % STRIDE).to(batch.device)
    wide = batch.index_select(-2, rows).index_select(-1, columns)
    result: Tensor = network(wide)
    return result[..., MARGIN : MARGIN + height, MARGIN : MARGIN + width]


def reflected(size: int, before: int, after: int) -> Tensor:
    """Indices that continue 0 ... size-1 by reflection, however far; one pixel is repeated.

    >>> reflected(3, 2, 3).tolist()
    [2, 1, 0, 1, 2, 1, 0, 1]
    """
    period = max(1, 2 * (size - 1))
    position = torch.arange(-before, size + after).remainder(period)
    return torch.minimum(position, period - position)


def _check_memory(width: int, batch: Tensor) -> None:
    """Refuse a photograph that needs more memory than is free.

    Linux promises more memory than it has, and later kills the program without a message.
    """
    available = available_memory() if batch.device.type == "cpu" else None
    count, _, height, columns = batch.shape
    needed = count * height * columns * width * BYTES_PER_PIXEL
    if available is not None and needed > available:
        # Memory grows with the area.
        raise StylizeError(_out_of_memory(height, columns, 0.9 * (available / needed) ** 0.5))
