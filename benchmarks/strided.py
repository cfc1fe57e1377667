"""Crops, slices and other strided inputs, which no kernel reads as they are, against torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import family

NOTES = """\
- Both libraries copy such an input first, ours into the nearest layout that its kernels read.
- *forward*, *training*, *eval* and the multiples are as above. The gradient arrives channels_last
  for the channels_last views, otherwise contiguous.
"""

SHAPES = ((4, 32, 64, 64), (8, 64, 28, 28))
LAYERS = ("InstanceNorm", "GroupNorm(8)", "BatchNorm")

#: name: of (N, C, H, W), a view with these sizes.
VIEWS: dict[str, Callable[..., Tensor]] = {
    "crop": lambda n, c, h, w: torch.randn(n, c, h + 8, w + 8)[:, :, 4:-4, 4:-4],
    "channel slice": lambda n, c, h, w: torch.randn(n, 2 * c, h, w)[:, :c],
    "every second element": lambda n, c, h, w: torch.randn(n, c, h, 2 * w)[..., ::2],
    "every second channel": lambda n, c, h, w: torch.randn(n, 2 * c, h, w)[:, ::2],
    "height and width swapped": lambda n, c, h, w: torch.randn(n, c, w, h).transpose(2, 3),
    "channels_last crop": lambda n, c, h, w: torch.randn(n, h + 8, w + 8, c).movedim(3, 1)[
        :, :, 4:-4, 4:-4
    ],
    "channels_last channel slice": lambda n, c, h, w: torch.randn(n, h, w, 2 * c).movedim(3, 1)[
        :, :c
    ],
}


def measure(
    layer: str, view: str, shape: tuple[int, int, int, int], budget: float = 0.5
) -> family.Row:
    torch.manual_seed(0)
    return family.measure(layer, shape, layout=view, budget=budget, x=VIEWS[view](*shape))


def rows() -> Iterator[family.Row]:
    for view in VIEWS:
        for shape in SHAPES:
            for layer in LAYERS:
                yield measure(layer, view, shape)
