"""Cases of the relatives of Instance Normalization."""

from __future__ import annotations

import torch

LAYOUT_NAMES = ["contiguous", "channels_last", "sliced"]


def randomize(layer):
    """Parameters that tell every mistake, and buffers such as training leaves."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return layer
