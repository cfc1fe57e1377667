"""A photograph through the network, at its own size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._machine import available_memory, is_out_of_memory
from .errors import StylizeError
from .features import luminance
from .network import STRIDE, Network
from .styles import Style

if TYPE_CHECKING:
    from collections.abc import Callable

#: Pixels reflected beyond each edge, so that the picture's edge is far from the network's.
MARGIN = 16

#: Peak memory of a pass beside the photograph, bytes per pixel and unit of width (measured).
BYTES_PER_PIXEL = 36


def stylize(
    image: Tensor, style: Style | Network, *, strength: float = 1.0, keep_color: bool = False
) -> Tensor:
    """The image in the manner of the style, on the image's device.

    Args:
        image: (3, H, W) or (N, 3, H, W), floating point in [0, 1]; any H and W.
        style: from :func:`load_style` or :func:`train`.
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
    if strength == 0:
        return image.clone()
    network = style.network if isinstance(style, Style) else style
    batch = image if image.dim() == 4 else image.unsqueeze(0)
    # The network is converted in place, and half precision would take digits from it for good.
    batch = batch.to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    network = network.to(batch.device, batch.dtype)
    _check_memory(network, batch)
    try:
        with torch.inference_mode():
            picture = through(network, batch)
            if keep_color:
                # Adding the change of luminance to every channel leaves the differences between
                # them, and so the chroma, as they were.
                picture = (batch + luminance(picture) - luminance(batch)).clamp_(0, 1)
            if strength < 1:
                picture = torch.lerp(batch, picture, strength)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StylizeError(_out_of_memory(*batch.shape[-2:])) from error
    # A copy outside inference mode is an ordinary tensor, which autograd accepts.
    return picture.to(image.dtype, copy=True).reshape(image.shape)


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


def _check_memory(network: Network, batch: Tensor) -> None:
    """Linux promises more memory than it has, and then kills the program without a word."""
    available = available_memory() if batch.device.type == "cpu" else None
    count, _, height, width = batch.shape
    needed = count * height * width * network.architecture.width * BYTES_PER_PIXEL
    if available is not None and needed > available:
        # Memory goes with the area.
        raise StylizeError(_out_of_memory(height, width, 0.9 * (available / needed) ** 0.5))
