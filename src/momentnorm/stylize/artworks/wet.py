"""Pictures of ink, water and light: watercolour, ink, marbling, gold, neon."""

from __future__ import annotations

import numpy as np

from .pieces import Array, Brush, Fields, blank, contours, edge, grid, lay, palette, ramp


def watercolour(size: int) -> Array:
    """Transparent washes with dark rims on rough paper: coral, sea green, ochre, blue."""
    x, y = grid(size)
    fields = Fields(83)
    grain = fields.at(x, y, 0.008)
    picture = blank(size, "fdfaf2")
    inks = palette("e4572e", "17bebb", "ffc145", "2e5aac", "e63980", "76b041", "8d5bd6", "1f7a8c")
    for index in range(14):
        shape = fields.at(x, y, 0.15 if index < 7 else 0.07)
        rough = shape + 0.08 * (fields.at(x, y, 0.03) - 0.5) + 0.02 * (grain - 0.5)
        inside = rough - (0.64 if index < 7 else 0.74)
        rim = np.exp(-np.abs(inside) / 0.01)
        depth = 0.25 + 0.55 * fields.at(x, y, 0.08) + 0.5 * rim + 0.3 * (grain - 0.5)
        strength = np.clip(inside / 0.006, 0, 1) * np.clip(depth, 0, 1)
        picture = picture * (1 - 0.9 * strength[..., None] * (1 - inks[index % len(inks)]))
    return np.clip(picture * (0.98 + 0.06 * (grain[..., None] - 0.5)), 0, 1)


def ink(size: int) -> Array:
    """A brush full of black ink on rice paper: grey washes, wet and dry strokes, red seals."""
    random = np.random.default_rng(97)
    x, y = grid(size)
    fields = Fields(98)
    wash, rough = fields.at(x, y, 0.16), fields.at(x, y, 0.03)
    picture = blank(size, "f3ecdd")
    for level, strength in ((0.45, 0.15), (0.58, 0.25), (0.68, 0.4), (0.78, 0.6)):
        inside = wash + 0.16 * (rough - 0.5) - level
        rim = 1 + 0.6 * np.exp(-np.abs(inside) / 0.01)
        picture = lay(picture, strength * rim * np.clip(inside * 14, 0, 1), palette("2d3036")[0])
    brush = Brush(picture, random, bristle=0.35, ragged=0.3, opacity=0.95)
    for index in range(120):
        cx, cy = random.uniform(0, 1, 2)
        length = random.uniform(0.2, 0.42) if index < 34 else random.uniform(0.04, 0.12)
        width = length * random.uniform(0.09, 0.2)
        angle = random.choice([-1.2, -0.5, 0.45]) + random.normal(0, 0.25)
        colour = palette("0d0d10" if index % 3 else "4a4c50")[0]
        brush.stroke((cx, cy), angle, length, width, colour, random.normal(0, 0.14))
    for cx, cy in random.uniform(0.05, 0.95, (6, 2)):
        seal = 0.024 - np.maximum(np.abs(x - cx), np.abs(y - cy))
        picture = lay(picture, edge(seal, size), palette("b3261a")[0])
    return picture


def marbling(size: int) -> Array:
    """Paints combed on water: thin bent bands of turquoise, coral, cream and navy."""
    x, y = grid(size)
    fields = Fields(103)
    u = x + 0.16 * (fields.at(x, y, 0.15) - 0.5) + 0.03 * np.sin(2 * np.pi * 5 * y)
    v = y + 0.24 * (fields.at(x, y, 0.13) - 0.5) + 0.07 * np.abs(np.mod(u * 6, 2) - 1)
    level = 2.4 * fields.at(u, v, 0.2) + 1.1 * v + 0.25 * fields.at(u, v, 0.05)
    bands = palette(
        "0b2545", "13a89e", "f6f1df", "f05d5e", "0b2545", "f6c667", "f6f1df", "0f7173", "d8315b"
    )
    place = np.mod(level * 1.5, 1) * len(bands)
    index = np.floor(place).astype(int) % len(bands)
    within = place - np.floor(place)
    soft = np.clip(within * 7, 0, 1)
    return lay(bands[index - 1], soft, bands[index])


def gilded(size: int) -> Array:
    """Gold leaf with spirals, eyes and small coloured tiles, after the Viennese."""
    random = np.random.default_rng(113)
    x, y = grid(size)
    fields = Fields(114)
    picture = ramp(
        0.75 * fields.at(x, y, 0.05) + 0.35 * fields.at(x, y, 0.01),
        palette("8a5a12", "c68a1e", "e6b53a", "f7dc7c", "fff0b8"),
    )
    tiles = palette("1a1a1a", "7a1f2b", "1f3f7a", "2e6b4f", "f5f0e0", "c2571a", "111111")
    owner = np.floor(x * 40).astype(int) * 97 + np.floor(y * 26).astype(int)
    chosen = np.random.default_rng(115).integers(0, len(tiles), 8192)[owner % 8192]
    u, v = np.mod(x * 40, 1), np.mod(y * 26, 1)
    rim = np.minimum(np.minimum(u, 1 - u) / 40, np.minimum(v, 1 - v) / 26)
    patch = edge(0.25 * (fields.at(x, y, 0.13) - 0.6), size)
    picture = lay(picture, patch * edge(rim - 0.0025, size), tiles[chosen])
    for index in range(34):
        cx, cy, turn = *random.uniform(0, 1, 2), random.uniform(0, 6.3)
        reach = random.uniform(0.05, 0.11) if index < 18 else random.uniform(0.025, 0.04)
        radius, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
        pitch = reach / 3.2
        arm = np.abs(np.mod(radius / pitch - (angle + turn) / (2 * np.pi), 1) - 0.5) * pitch
        inside = edge(reach - radius, size)
        ground = palette("e9bf4a" if index % 2 else "3a2410")[0]
        line = palette("2b1a0a" if index % 2 else "f3cf62")[0]
        picture = lay(picture, inside, ground)
        picture = lay(picture, inside * edge(pitch * 0.2 - arm, size), line)
        picture = lay(picture, edge(0.0035 - np.abs(radius - reach), size), palette("24140a")[0])
    return picture


def neon(size: int) -> Array:
    """Tubes of light in the dark: glowing contours in magenta, cyan and amber."""
    x, y = grid(size)
    fields = Fields(127)
    picture = ramp(fields.at(x, y, 0.2), palette("05030f", "0d0a2a", "1a0b3d"))
    lights = palette("ff2bd6", "19e3ff", "ff8a1f", "7a4dff")
    for index, colour in enumerate(lights):
        level = 3.0 * fields.at(x, y, 0.19) + 0.25 * fields.at(x, y, 0.06) + 0.17 * index
        distance = contours(level)
        halo = 0.6 * np.exp(-distance / 0.016)
        core = edge(0.0042 - distance, size)
        picture = np.clip(picture + halo[..., None] * colour, 0, 1)
        picture = lay(picture, core, 0.35 + 0.65 * colour)
    return picture
