"""Style pictures drawn by code. They have no other owner, and are equal on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StylizeError
from . import cut, painted, printed, wet

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pieces import Array


class Artwork(NamedTuple):
    """A style picture.

    Args:
        draw: function that draws the picture at a size, (size, size, 3) in [0, 1].
        title: description of the picture.
        seen: size at which a training compares it. A larger size gives broader strokes.
        content: weight of the photograph in a training. A larger weight keeps more of it readable.
    """

    draw: Callable[[int], Array]
    title: str
    seen: int = 256
    content: float = 2.0


ARTWORKS: dict[str, Artwork] = {
    "mosaic": Artwork(cut.mosaic, "stained-glass mosaic (Voronoi cells)", 288, 3.5),
    "swirl": Artwork(painted.swirl, "night sky of thick brush strokes around whirls", 448, 1.5),
    "woodcut": Artwork(printed.woodcut, "woodcut in black and red ink (bent hatching)"),
    "dabs": Artwork(painted.dabs, "pointillist dabs of pure colour", 448),
    "knife": Artwork(painted.knife, "slabs of the palette knife, orange and violet", 384, 2.5),
    "meadow": Artwork(painted.meadow, "impressionist garden in broken strokes", 512, 1.4),
    "wave": Artwork(printed.wave, "Japanese woodblock waves, indigo on cream", 288),
    "engraving": Artwork(printed.engraving, "copper engraving, crossing sepia lines", 352, 2.5),
    "poster": Artwork(printed.poster, "comic poster, bold outlines and flat colour"),
    "cutouts": Artwork(cut.cutouts, "cut paper on panels of strong colour"),
    "cubist": Artwork(cut.cubist, "cubist facets in ochre and slate", 320, 1.7),
    "geometry": Artwork(cut.geometry, "Bauhaus circles, bars and triangles", 320),
    "crystal": Artwork(cut.crystal, "splinters of ice and amethyst", 288),
    "watercolour": Artwork(wet.watercolour, "transparent washes on rough paper", 384, 1.2),
    "ink": Artwork(wet.ink, "black ink on rice paper with red seals", 288, 1.0),
    "marbling": Artwork(wet.marbling, "marbled paper, combed bands", 288, 2.5),
    "gilded": Artwork(wet.gilded, "gold leaf with spirals and small tiles", 352),
    "neon": Artwork(wet.neon, "glowing contours in the dark", content=3.0),
}


def draw(name: str, size: int = 512) -> NDArray[np.uint8]:
    """Draw the style picture of this name, (size, size, 3)."""
    if name not in ARTWORKS:
        raise StylizeError(
            f"no style picture is named {name!r}: choose one of {', '.join(ARTWORKS)}"
        )
    picture = np.clip(ARTWORKS[name].draw(size), 0, 1)
    return np.rint(picture * 255).astype(np.uint8)
