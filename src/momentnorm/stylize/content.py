"""Content photographs of a training: their files, and the crops of each step."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import StylizeError
from .images import SKIMAGE_PHOTOS, photo_path, photos_in, read_photo
from .objective import scaled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The longer side to which photographs are scaled on reading: crops are far smaller.
LONGEST = 640

#: Crops are up to this many times the training size before they are scaled down to it.
LARGEST_ZOOM = 3.0

_NONE = "none of the content photographs can be read; give others"


def content_files(folder: str | Path | None) -> list[str]:
    """List the photographs of a folder; without one, those inside the scikit-image wheel.

    Raises:
        StylizeError: no such folder, none in it, or scikit-image is not installed.
    """
    if folder is None:
        names = [f"skimage:{name}" for name in SKIMAGE_PHOTOS]
        photo_path(names[0])  # raises if scikit-image is not installed
        return names
    folder = Path(folder)
    if not folder.is_dir():
        raise StylizeError(f"{folder}: no such folder; --content takes a folder of photographs")
    files = photos_in(folder)
    if not files:
        raise StylizeError(f"{folder}: no photographs in it; put JPEG, PNG or WebP files there")
    return [str(file) for file in files]


#: Photographs inside other packages than scikit-image.
_ELSEWHERE = (
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/color.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
#: Photographs that no training of a style uses, so that pictures of them can be judged.
HELD_OUT = ("astronaut", "coffee")
#: Photographs of scenes. They come three times as often as planes of gravel or grass.
_SCENES = ("chelsea", "rocket", "camera", "china", "flower", "grace_hopper", "motorcycle_left")


def training_photographs(folder: str | Path | None) -> list[str]:
    """Photographs to learn styles on, some of them more than once.

    They are those of the folder; without one, those inside scikit-image, and inside scikit-learn
    and matplotlib where these are installed.

    Raises:
        StylizeError: no such folder, no photographs in it, or scikit-image is not installed.
    """
    files = content_files(folder)
    if folder is not None:
        return files
    files = [file for file in files if file.removeprefix("skimage:") not in HELD_OUT]
    for package, name in _ELSEWHERE:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / name if spec is not None and spec.origin else None
        if path is not None and path.is_file():
            files.append(str(path))
    scenes = [file for file in files if Path(file.removeprefix("skimage:")).stem in _SCENES]
    return files + 2 * scenes


def read_first(
    files: Sequence[str], count: int, size: int, note: Callable[[str], None] = lambda text: None
) -> tuple[list[Tensor], list[str]]:
    """Read up to ``count`` photographs, (3, H, W) in [0, 1] each; also the files after them.

    Args:
        files: files of photographs.
        count: how many to read.
        size: the longer side to which larger ones are scaled.
        note: function that is told of a photograph that cannot be read. The next one takes its
            place.

    Raises:
        StylizeError: none can be read.
    """
    photographs: list[Tensor] = []
    others = iter(files)
    for file in others:
        try:
            photographs.append(scaled(read_photo(file).rgb, size))
        except StylizeError as error:
            note(f"left out: {error}")
        if len(photographs) == count:
            return photographs, list(others)
    if not photographs:
        raise StylizeError(_NONE)
    return photographs, []


def generator_of(seed: int, step: int) -> torch.Generator:
    """Random generator of a step. Resuming needs no state except the step's number."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Crops:
    """Random crops of photographs. The crops of a step depend on the seed and the step alone.

    Args:
        files: the photographs; read when first needed, and kept while there is room.
        size: height and width of a crop.
        seed: seed of the choice.
        note: function that is told of a photograph that cannot be read. Others take its place.
    """

    def __init__(
        self,
        files: Sequence[str],
        size: int,
        seed: int,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not files:
            raise StylizeError("no content photographs were given; give at least one")
        self.files = list(files)
        self.size = size
        self.seed = seed
        self.note = note
        self._bad: set[str] = set()
        self._read = functools.lru_cache(maxsize=256)(self._read_bytes)

    def fingerprint(self) -> str:
        """Hash of the list of files, which a checkpoint compares."""
        names = "\n".join(Path(file).name for file in self.files)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def batch(self, step: int, count: int) -> Tensor:
        """Crops of a step, (count, 3, size, size) in [0, 1]."""
        random = generator_of(self.seed, step)
        return torch.stack([self._crop(random) for _ in range(count)])

    def _crop(self, random: torch.Generator) -> Tensor:
        photo = self._photo(int(torch.randint(len(self.files), (), generator=random)))
        height, width = photo.shape[-2:]
        zoom, at_y, at_x, flip = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        largest = max(1.0, min(height, width) / self.size)
        side = round(self.size * min(largest, LARGEST_ZOOM) ** zoom)
        side = min(side, height, width)
        top, left = int(at_y * (height - side + 1)), int(at_x * (width - side + 1))
        crop = photo[:, top : top + side, left : left + side].float() / 255
        if flip < 0.5:
            crop = crop.flip(-1)
        if side != self.size:
            crop = F.interpolate(
                crop.unsqueeze(0), (self.size, self.size), mode="bilinear", antialias=True
            ).squeeze(0)
        return crop

    def _photo(self, index: int) -> Tensor:
        for offset in range(len(self.files)):
            file = self.files[(index + offset) % len(self.files)]
            if file in self._bad:
                continue
            try:
                return self._read(file)
            except StylizeError as error:
                self._bad.add(file)
                self.note(f"left out: {error}")
        raise StylizeError(_NONE)

    def _read_bytes(self, file: str) -> Tensor:
        # Bytes, since that is a quarter of the memory.
        pixels = scaled(read_photo(file).rgb, LONGEST)
        return (pixels * 255).round().clamp(0, 255).byte()
