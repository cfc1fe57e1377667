"""A photograph through the trunk, at its own size."""

from __future__ import annotations

import torch
from torch import Tensor

from .apply import through
from .grain import grained, still_grain
from .trunk import Trunk


def paint(trunk: Trunk, image: Tensor, style: Tensor) -> Tensor:
    """The picture of (3, H, W) in a style, (3, H, W)."""
    batch = grained(image.unsqueeze(0), still_grain())
    batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return through(lambda wide: trunk(wide, style), batch).squeeze(0)
