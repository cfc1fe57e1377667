"""Real images that come inside packages: handwritten digits, and patches of photographs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ..stylize.features import luminance
from ..stylize.images import SKIMAGE_PHOTOS, read_photo
from ..stylize.objective import scaled

#: The longer side to which photographs are scaled; the side of the squares that they are cut into.
LONGEST = 384
BLOCK = 32
#: Scaling mixes neighbouring pixels, so patches stay this far from their square's border.
MARGIN = 2
PATCH = 16
#: Patches of each photograph.
TRAINING = 96
TEST = 48


class Data(NamedTuple):
    """Images to learn from and others to judge by, standardized by the first ones' moments."""

    images: Tensor  # (N, 1, H, W)
    labels: Tensor  # (N,)
    test_images: Tensor
    test_labels: Tensor
    classes: int


@functools.cache
def digits() -> Data:
    """scikit-learn's 1797 handwritten digits, 8x8: the first two thirds to learn from.

    They lie in the order in which they were collected, so the last third is mostly of other
    writers.
    """
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    at = len(images) * 2 // 3
    return _standardized(images[:at], labels[:at], images[at:], labels[at:])


@functools.cache
def patches() -> Data:
    """Which photograph is this from? Grey 16x16 patches of the photographs inside scikit-image.

    A photograph is cut into squares. Every fourth is held out: patches to judge by lie in those,
    patches to learn from in the others, and none reaches its square's border.
    """
    random = torch.Generator().manual_seed(0)
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    for name in SKIMAGE_PHOTOS:
        photograph = grey(name)
        for held_out, count in ((False, TRAINING), (True, TEST)):
            corners = places(photograph, held_out, count, random).tolist()
            cut = [photograph[:, y : y + PATCH, x : x + PATCH] for y, x in corners]
            parts[held_out].append(torch.stack(cut))
    images, test_images = (torch.cat(parts[held_out]) for held_out in (False, True))
    classes = torch.arange(len(SKIMAGE_PHOTOS))
    return _standardized(
        images, classes.repeat_interleave(TRAINING), test_images, classes.repeat_interleave(TEST)
    )


def grey(name: str) -> Tensor:
    """(1, H, W) of one of scikit-image's photographs."""
    return luminance(scaled(read_photo(f"skimage:{name}").rgb, LONGEST))


def places(photograph: Tensor, held_out: bool, count: int, random: torch.Generator) -> Tensor:
    """(count, 2): upper left corners of patches within the held out squares, or the others."""
    height, width = photograph.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height // BLOCK), torch.arange(width // BLOCK), indexing="ij"
    )
    chosen = ((rows + 2 * columns) % 4 == 0) == held_out
    squares = torch.stack([rows[chosen], columns[chosen]], 1) * BLOCK
    square = squares[torch.randint(len(squares), (count,), generator=random)]
    offsets = torch.randint(MARGIN, BLOCK - MARGIN - PATCH + 1, (count, 2), generator=random)
    return square + offsets


def _standardized(images: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> Data:
    deviation, mean = torch.std_mean(images)
    classes = int(labels.max()) + 1
    return Data(
        (images - mean) / deviation, labels, (test - mean) / deviation, test_labels, classes
    )


DATA = {"digits": digits, "patches": patches}
