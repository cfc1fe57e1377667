"""Data: images inside installed packages, handwritten digits and patches of photographs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ..stylize.features import luminance
from ..stylize.images import SKIMAGE_PHOTOS, read_photo
from ..stylize.objective import scaled

#: Longer side of the scaled photographs, in pixels.
LONGEST = 384
#: Side of the squares that a photograph is cut into.
BLOCK = 32
#: Distance of a patch from its square's border. Scaling has mixed neighbouring pixels there.
MARGIN = 2
#: Side of a patch.
PATCH = 16
#: Number of patches of each photograph, for training and for the test.
TRAINING = 96
TEST = 48


class Data(NamedTuple):
    """Training and test images, both standardized by the moments of the training images."""

    images: Tensor  # (N, 1, H, W)
    labels: Tensor  # (N,)
    test_images: Tensor
    test_labels: Tensor
    classes: int


@functools.cache
def digits() -> Data:
    """Data of scikit-learn's 1797 handwritten digits, 8x8. The last third is the test.

    They are in the order of their collection, so most writers of the last third are new.
    """
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    at = len(images) * 2 // 3
    return _standardized(images[:at], labels[:at], images[at:], labels[at:])


@functools.cache
def patches() -> Data:
    """Data of grey 16x16 patches of scikit-image's photographs. The class is the photograph.

    A photograph is cut into squares. Test patches are taken from every fourth square, training
    patches from the rest. No patch reaches its square's border.
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
    """Grey photograph of scikit-image, (1, H, W)."""
    return luminance(scaled(read_photo(f"skimage:{name}").rgb, LONGEST))


def places(photograph: Tensor, held_out: bool, count: int, random: torch.Generator) -> Tensor:
    """Upper left corners of patches in the held-out squares, or in the rest, (count, 2)."""
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
