"""Style pictures drawn by code: free of anybody's rights, and the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import StylizeError

if TYPE_CHECKING:
    from collections.abc import Callable

Array = NDArray[np.float64]


def _palette(*colours: str) -> Array:
    """(K, 3) in [0, 1] of "rrggbb"."""
    return np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in colours]) / 255.0


def _grid(size: int) -> tuple[Array, Array]:
    """The x and y of every pixel's centre, (size, size) each, in [0, 1]."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _ramp(value: Array, colours: Array) -> Array:
    """(H, W) in [0, 1] to (H, W, 3), through the colours in turn."""
    position = np.clip(value, 0, 1) * (len(colours) - 1)
    low = np.minimum(position.astype(int), len(colours) - 2)
    share = (position - low)[..., None]
    mixed: Array = colours[low] * (1 - share) + colours[low + 1] * share
    return mixed


def _smooth(noise: Array, radius: float) -> Array:
    """Blur by a periodic Gaussian and stretch to [0, 1]."""
    frequency = np.fft.fftfreq(len(noise))
    falloff = np.exp(-2 * (np.pi * radius * frequency) ** 2)
    blurred = np.fft.ifft2(np.fft.fft2(noise) * falloff[:, None] * falloff[None, :]).real
    stretched: Array = (blurred - blurred.min()) / (np.ptp(blurred) + 1e-12)
    return stretched


def mosaic(size: int) -> Array:
    """Glass cells with dark leading between them: a Voronoi diagram of a jittered lattice."""
    random = np.random.default_rng(7)
    across = 15
    lattice = np.stack(np.meshgrid(np.arange(-1, across + 1), np.arange(-1, across + 1)), -1)
    sites = (lattice.reshape(-1, 2) + random.uniform(0.02, 0.98, (lattice.size // 2, 2))) / across
    colours = _palette(
        "0b3c8c", "1566c0", "f2a900", "f7d117", "c8102e", "ee5a24", "0f8f7a", "f5ead0", "5b1a8b"
    )
    # Neighbours look alike here and there, so that larger forms show.
    field = _smooth(random.standard_normal((64, 64)), 5.0)
    at = np.clip((sites * 64).astype(int), 0, 63)
    chosen = field[at[:, 1], at[:, 0]] * len(colours) + random.normal(0, 1.6, len(sites))
    cell_colour = colours[chosen.astype(int) % len(colours)]
    cell_colour = np.clip(cell_colour * random.uniform(0.85, 1.12, (len(sites), 1)), 0, 1)

    x, y = _grid(size)
    nearest = np.full((size, size), np.inf)
    second = np.full((size, size), np.inf)
    owner = np.zeros((size, size), dtype=int)
    for index, (sx, sy) in enumerate(sites):
        distance = np.hypot(x - sx, y - sy)
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        owner[closer] = index
        nearest = np.minimum(nearest, distance)
    gap = (second - nearest) * across
    lead = np.clip((gap - 0.06) / 0.06, 0, 1)[..., None]
    picture: Array = cell_colour[owner] * lead + _palette("14100f")[0] * (1 - lead)
    return picture


def swirl(size: int) -> Array:
    """Brush strokes around whirls: noise smeared along a field (line integral convolution)."""
    random = np.random.default_rng(3)
    x, y = _grid(size)
    whirls = random.uniform(0.05, 0.95, (9, 2))
    turns = np.where(np.arange(9) % 2 == 0, 1.0, -1.0)
    u, v = np.full_like(x, 0.6), 0.35 * np.sin(2 * np.pi * x)
    for (wx, wy), turn in zip(whirls, turns, strict=True):
        dx, dy = x - wx, y - wy
        strength = turn * np.exp(-(dx**2 + dy**2) / 0.02) * 22
        u, v = u - strength * dy, v + strength * dx
    length = np.hypot(u, v) + 1e-9
    u, v = u / length, v / length

    # The texture is made of dabs of a few pixels, as wide as a stroke.
    stroke = size / 256 * 1.6
    noise = _smooth(random.standard_normal((size, size)), stroke)
    total, reach = np.zeros_like(x), int(size * 0.06)
    for direction in (1.0, -1.0):
        px, py = np.meshgrid(np.arange(size) + 0.0, np.arange(size) + 0.0)
        for _ in range(reach):
            column = np.mod(np.rint(px).astype(int), size)
            row = np.mod(np.rint(py).astype(int), size)
            total += noise[row, column]
            px, py = px + direction * u[row, column], py + direction * v[row, column]
    # Up to 16 pixels a stroke has no length, and there are none.
    strokes = (total - total.mean()) / max(total.std(), 1e-12)
    halo = np.zeros_like(x)
    for a, b in whirls[::2]:
        halo += np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.006)
    depth = _smooth(random.standard_normal((size, size)), size / 7)
    colours = _palette("0a1440", "123a8c", "1f6fc4", "58b4d9", "e9e2b0", "f6c445", "f08a1c")
    return _ramp(0.08 + 0.34 * depth + 0.13 * strokes + 0.55 * np.clip(halo, 0, 1), colours)


def woodcut(size: int) -> Array:
    """Ink on paper: bent parallel cuts, thicker where it is darker, in two inks."""
    random = np.random.default_rng(11)
    x, y = _grid(size)
    bend = _smooth(random.standard_normal((size, size)), size / 9)
    tone = _smooth(random.standard_normal((size, size)), size / 12)
    patch = _smooth(random.standard_normal((size, size)), size / 10)
    steep = np.where(patch > 0.5, 1.0, -1.0)
    phase = 2 * np.pi * (34 * (x * 0.45 * steep + y) + 5.0 * bend)
    cut = 0.5 + 0.5 * np.sin(phase)
    ink = np.clip((1.25 * tone - 0.12 - cut) * 7 + 0.5, 0, 1)[..., None]
    paper, black, red = _palette("f3e6c8", "17141c", "c63a22")
    wash = np.clip((_smooth(random.standard_normal((size, size)), size / 11) - 0.62) * 30, 0, 1)
    ground = paper * (1 - wash[..., None]) + red * wash[..., None]
    picture: Array = ground * (1 - ink) + black * ink
    return picture


def dabs(size: int) -> Array:
    """Dabs of pure colour, one over another, as the pointillists set them."""
    random = np.random.default_rng(5)
    x, y = _grid(size)
    picture: Array = np.broadcast_to(_palette("f4d8c4")[0], (size, size, 3)).copy()
    warm = _palette("f25f5c", "ffb347", "ffe066", "f78fb3", "e84393")
    cool = _palette("247ba0", "50c9ba", "3d5a98", "7bc950", "8e6bbf")
    field = _smooth(random.standard_normal((64, 64)), 6.0)
    for _ in range(2600):
        cx, cy = random.uniform(-0.02, 1.02, 2)
        radius = random.uniform(0.014, 0.023)
        here = field[min(63, max(0, int(cy * 64))), min(63, max(0, int(cx * 64)))]
        family = warm if here + random.normal(0, 0.14) > 0.5 else cool
        colour = np.clip(family[random.integers(len(family))] + random.normal(0, 0.04, 3), 0, 1)
        top, bottom = int((cy - radius) * size) - 1, int((cy + radius) * size) + 2
        left, right = int((cx - radius) * size) - 1, int((cx + radius) * size) + 2
        rows, columns = slice(max(0, top), max(0, bottom)), slice(max(0, left), max(0, right))
        distance = np.hypot(x[rows, columns] - cx, y[rows, columns] - cy)
        cover = np.clip((radius - distance) * size + 0.5, 0, 1)[..., None]
        picture[rows, columns] = picture[rows, columns] * (1 - cover) + colour * cover
    return picture


class Artwork(NamedTuple):
    draw: Callable[[int], Array]
    title: str


ARTWORKS: dict[str, Artwork] = {
    "mosaic": Artwork(mosaic, "stained-glass mosaic (Voronoi cells)"),
    "swirl": Artwork(swirl, "swirling brush strokes (line integral convolution)"),
    "woodcut": Artwork(woodcut, "woodcut in black and red ink (bent hatching)"),
    "dabs": Artwork(dabs, "pointillist dabs of pure colour"),
}


def draw(name: str, size: int = 512) -> NDArray[np.uint8]:
    """The style picture of this name, (size, size, 3)."""
    if name not in ARTWORKS:
        raise StylizeError(
            f"no style picture is named {name!r}: choose one of {', '.join(ARTWORKS)}"
        )
    picture = np.clip(ARTWORKS[name].draw(size), 0, 1)
    return np.rint(picture * 255).astype(np.uint8)
