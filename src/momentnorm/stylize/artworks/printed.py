"""Pictures from blocks, plates and screens: woodcut, wave, engraving, poster."""

from __future__ import annotations

import numpy as np

from .pieces import Array, Fields, blank, contours, edge, grid, lay, palette, ramp


def woodcut(size: int) -> Array:
    """Ink on paper: bent parallel cuts, thicker where it is darker, in two inks."""
    x, y = grid(size)
    fields = Fields(11)
    bend, tone, patch, red_patch = (fields.at(x, y, scale) for scale in (0.2, 0.16, 0.16, 0.15))
    steep = np.where(patch > 0.5, 1.0, -1.0)
    phase = 2 * np.pi * (30 * (x * 0.45 * steep + y) + 5.0 * bend)
    cut = 0.5 + 0.5 * np.sin(phase)
    ink = (1.5 * tone - 0.25 - cut) * 7 + 0.5
    picture = lay(blank(size, "f5e8cb"), (red_patch - 0.56) * 40, palette("d0331f")[0])
    return lay(picture, ink, palette("17141c")[0])


def wave(size: int) -> Array:
    """A colour woodblock print: curling waves with lines of foam, indigo on cream."""
    x, y = grid(size)
    fields = Fields(23)
    low, lift = fields.at(x, y, 0.2), fields.at(x, y, 0.09)
    picture = ramp(y + 0.25 * (low - 0.5), palette("e9b872", "f4dfb6", "f6ead0", "e8dcc0"))
    for row in range(9):
        middle = 0.1 + row * 0.115
        shift = 0.21 * row
        u = x * 2.1 + shift
        crest = middle + 0.055 * np.sin(2 * np.pi * u + 1.1 * np.sin(2 * np.pi * u)) - 0.07 * lift
        below = y - crest
        tone = 0.85 - below / 0.16 + 0.15 * np.sin(2 * np.pi * (below * 26 + 1.5 * low))
        water = ramp(
            np.clip(np.round(tone * 4) / 4, 0, 1), palette("122b54", "1d4a86", "3f7fae", "9cc3cc")
        )
        picture = lay(picture, edge(below, size), water)
        foam = 0.011 + 0.008 * np.abs(np.sin(2 * np.pi * (9 * u + 2 * lift)))
        picture = lay(picture, edge(foam - np.abs(below - 0.004), size), palette("fbf6e6")[0])
        picture = lay(picture, edge(0.0028 - np.abs(below + 0.006), size), palette("0c1730")[0])
        stripe = np.abs(np.mod(below * 22 + 0.6 * np.sin(2 * np.pi * u) + low, 1) - 0.5)
        lines = np.minimum(edge(0.004 - stripe / 22, size), edge(below - 0.03, size))
        picture = lay(picture, 0.75 * lines, palette("0c1f45")[0])
    return picture


def engraving(size: int) -> Array:
    """A copper plate: three crossing layers of fine lines in sepia, denser in the shade."""
    x, y = grid(size)
    fields = Fields(31)
    form, tone = fields.at(x, y, 0.17), fields.at(x, y, 0.12)
    picture = blank(size, "f7efdc")
    shade = np.clip(1.5 * tone - 0.25, 0, 1)
    steps = ((0.1, 44, 0.3), (0.42, 44, 1.35), (0.66, 44, -0.65))
    for start, count, angle in steps:
        across = x * np.cos(angle) + y * np.sin(angle) + 0.16 * form
        distance = np.abs(np.mod(across * count, 1) - 0.5) / count
        width = 0.0052 * np.clip((shade - start) * 2.2, 0, 1)
        picture = lay(
            picture, edge(width - distance, size) * (width > 0.0006), palette("33231a")[0]
        )
    return picture


def poster(size: int) -> Array:
    """A comic page: bold outlines around flat shapes of red, yellow, cyan, some of them dotted."""
    x, y = grid(size)
    fields = Fields(40)
    a, b = fields.at(x, y, 0.17), fields.at(x, y, 0.13)
    level = 7.0 * a + 1.5 * b
    band = np.floor(level).astype(int)
    colours = palette(
        "ffffff", "ffd400", "e4002b", "00a3e0", "ffffff", "f9a8c0", "ffd400", "1b1b3a"
    )
    picture = colours[band % len(colours)]
    u, v = (x + y) * 30, (x - y) * 30
    dot = np.hypot(np.mod(u, 1) - 0.5, np.mod(v, 1) - 0.5) / 42
    dotted = (band % 4 == 0) * edge(0.0075 - dot, size)
    picture = lay(picture, dotted, palette("e4002b")[0])
    return lay(picture, edge(0.0085 - contours(level), size), palette("111111")[0])
