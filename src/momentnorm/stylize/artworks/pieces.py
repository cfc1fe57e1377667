"""Pieces of style pictures: colours, noise, shapes and brush strokes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def palette(*colours: str) -> Array:
    """(K, 3) in [0, 1] of "rrggbb"."""
    return np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in colours]) / 255.0


def grid(size: int) -> tuple[Array, Array]:
    """The x and y of every pixel's centre, (size, size) each, in [0, 1]."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def ramp(value: Array, colours: Array) -> Array:
    """(...) in [0, 1] to (..., 3), through the colours in turn."""
    position = np.clip(value, 0, 1) * (len(colours) - 1)
    low = np.minimum(position.astype(int), len(colours) - 2)
    share = (position - low)[..., None]
    mixed: Array = colours[low] * (1 - share) + colours[low + 1] * share
    return mixed


def blank(size: int, colour: str) -> Array:
    """(size, size, 3) of one colour."""
    return np.tile(palette(colour)[0], (size, size, 1))


def lay(picture: Array, cover: Array, colour: Array) -> Array:
    """The picture with a colour, or another picture, laid over it where cover is 1."""
    share = np.clip(cover, 0, 1)[..., None]
    result: Array = picture * (1 - share) + colour * share
    return result


def smooth(noise: Array, radius: float) -> Array:
    """Blur by a periodic Gaussian and stretch to [0, 1]."""
    frequency = np.fft.fftfreq(len(noise))
    falloff = np.exp(-2 * (np.pi * radius * frequency) ** 2)
    blurred = np.fft.ifft2(np.fft.fft2(noise) * falloff[:, None] * falloff[None, :]).real
    stretched: Array = (blurred - blurred.min()) / (np.ptp(blurred) + 1e-12)
    return stretched


def sample(field: Array, x: Array, y: Array) -> Array:
    """Values of a periodic field, (n, n), at points of the unit square, by bilinear weights."""
    n = len(field)
    u, v = x * n - 0.5, y * n - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - left, v - top
    rows, columns = (top % n, (top + 1) % n), (left % n, (left + 1) % n)
    upper = field[rows[0], columns[0]] * (1 - a) + field[rows[0], columns[1]] * a
    lower = field[rows[1], columns[0]] * (1 - a) + field[rows[1], columns[1]] * a
    result: Array = upper * (1 - b) + lower * b
    return result


class Fields:
    """Smooth noise in [0, 1], alike at every size of the picture."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def at(self, x: Array, y: Array, scale: float) -> Array:
        """Values at points of the unit square; the scale is a feature's share of the picture."""
        return sample(self.field(scale), x, y)

    def field(self, scale: float) -> Array:
        cells = 128 if scale > 0.02 else 512
        return smooth(self.random.standard_normal((cells, cells)), scale * cells / 2)


def edge(distance: Array, size: int) -> Array:
    """1 where a distance, in the unit of the picture's side, is positive, with a soft border."""
    result: Array = np.clip(distance * size + 0.5, 0, 1)
    return result


def contours(level: Array) -> Array:
    """Distance of every pixel from the nearest line where the level is a whole number.

    It is in the unit of the picture's side, and by the slope, so lines are equally wide everywhere.
    """
    size = len(level)
    if size < 2:
        return np.ones_like(level)
    slope = np.hypot(*np.gradient(level)) * size
    distance: Array = np.abs(level - np.round(level)) / np.maximum(slope, 2.0)
    return distance


def cells(
    size: int, sites: Array, x: Array | None = None, y: Array | None = None
) -> tuple[NDArray[np.intp], Array]:
    """Voronoi cells: each pixel's nearest site, and how much nearer it is than the second."""
    if x is None or y is None:
        x, y = grid(size)
    nearest = np.full(x.shape, np.inf)
    second = np.full(x.shape, np.inf)
    owner = np.zeros(x.shape, dtype=np.intp)
    for index, (sx, sy) in enumerate(sites):
        distance = np.hypot(x - sx, y - sy)
        closer = distance < nearest
        second = np.where(closer, nearest, np.minimum(second, distance))
        owner[closer] = index
        nearest = np.minimum(nearest, distance)
    return owner, second - nearest


def lattice(across: int, jitter: float, random: np.random.Generator) -> Array:
    """(K, 2) sites of a jittered square lattice that covers the unit square and its rim."""
    places = np.arange(-1, across + 1)
    sites = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    result: Array = (sites + 0.5 + random.uniform(-jitter, jitter, sites.shape)) / across
    return result


class Brush:
    """Lays strokes of paint, with bristles and a lit ridge, on a picture.

    Args:
        picture: (size, size, 3), painted over in place.
        random: of bristles and colours.
        bristle: how much lighter and darker the hairs' traces are.
        opacity: 1 covers, less lets through.
        ragged: how far the ends of hairs differ, as a share of the stroke's length.
    """

    def __init__(
        self,
        picture: Array,
        random: np.random.Generator,
        bristle: float = 0.1,
        opacity: float = 1.0,
        ragged: float = 0.15,
    ) -> None:
        self.picture, self.random = picture, random
        self.bristle, self.opacity, self.ragged = bristle, opacity, ragged
        self.x, self.y = grid(len(picture))

    def stroke(
        self,
        at: tuple[float, float],
        angle: float,
        length: float,
        width: float,
        colour: Array,
        bend: float = 0.0,
    ) -> None:
        """One stroke around a point; bend is the sag of its middle as a share of its length."""
        size = len(self.picture)
        hairs = self.random.normal(0, 1, (2, 16))
        reach = length / 2 + width + abs(bend) * length
        rows, columns = (
            slice(max(0, int((c - reach) * size)), max(0, int((c + reach) * size) + 2))
            for c in (at[1], at[0])
        )
        dx, dy = self.x[rows, columns] - at[0], self.y[rows, columns] - at[1]
        if not dx.size:
            return
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        share = 2 * along / length
        across = across - bend * length * (1 - share**2)
        hair = np.clip((across / width + 0.5) * 15, 0, 14.999)
        low = hair.astype(int)
        part = hair - low
        shade, end = (row[low] * (1 - part) + row[low + 1] * part for row in hairs)
        half = length / 2 * (1 - self.ragged * np.abs(end))
        cover = np.minimum(edge(half - np.abs(along), size), edge(width / 2 - np.abs(across), size))
        ridge = across / width  # lit from above left
        light = 1 + self.bristle * (shade - 1.2 * ridge)
        share_of_paint = (cover * self.opacity)[..., None]
        paint = np.clip(colour * light[..., None], 0, 1)
        here = self.picture[rows, columns]
        self.picture[rows, columns] = here * (1 - share_of_paint) + paint * share_of_paint
