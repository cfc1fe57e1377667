"""Pictures of brush strokes: night, palette knife, dabs, meadow."""

from __future__ import annotations

import numpy as np

from .pieces import Array, Brush, Fields, blank, edge, grid, lay, palette, ramp, sample


def _whirls(x: Array, y: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Angle of a flow around whirls, and how near a point is to a whirl that shines."""
    centres = random.uniform(0.05, 0.95, (11, 2))
    u, v = 0.8 + 0 * x, 0.5 * np.sin(2 * np.pi * (x + 0.3 * y))
    glow = 0 * x
    for index, (cx, cy) in enumerate(centres):
        dx, dy = x - cx, y - cy
        near = np.exp(-(dx**2 + dy**2) / 0.012)
        turn = 30.0 if index % 2 else -30.0
        u, v = u - turn * near * dy, v + turn * near * dx
        if index % 2 == 0:
            glow = glow + np.exp(-(dx**2 + dy**2) / 0.004)
    return np.arctan2(v, u), glow


def swirl(size: int) -> Array:
    """A night sky: short thick strokes around whirls, blue with lights of yellow."""
    random = np.random.default_rng(3)
    fields = Fields(5)
    picture = blank(size, "0b1a4a")
    brush = Brush(picture, random, bristle=0.22, ragged=0.3)
    depth = fields.field(0.16)
    colours = palette(
        "0a1440", "12307c", "1f5fb8", "3f8fd0", "8cc7dc", "f1ecc4", "fbd34f", "f39a1f"
    )
    points = random.uniform(-0.02, 1.02, (5200, 2))
    layout = np.random.default_rng(21)
    angles, glow = _whirls(points[:, 0], points[:, 1], layout)
    tone = 0.04 + 0.58 * sample(depth, points[:, 0], points[:, 1]) + 0.75 * np.minimum(glow, 1)
    for index, (cx, cy) in enumerate(points):
        shade = tone[index] + random.normal(0, 0.09)
        colour = ramp(np.array(shade), colours)
        length, width = random.uniform(0.045, 0.085), random.uniform(0.009, 0.014)
        brush.stroke((cx, cy), float(angles[index]), length, width, colour, random.normal(0, 0.05))
    return picture


def knife(size: int) -> Array:
    """A wet evening street in slabs of the palette knife: orange, crimson, violet, teal."""
    random = np.random.default_rng(17)
    fields = Fields(9)
    picture = blank(size, "241a3a")
    brush = Brush(picture, random, bristle=0.14, ragged=0.08)
    warm = palette("ffd166", "ff9f1c", "f3722c", "e63946", "b5179e", "7209b7")
    cool = palette("03045e", "023e8a", "0096c7", "2a9d8f", "8ecae6")
    heat, tone = fields.field(0.2), fields.field(0.1)
    for place in range(1700):
        cx, cy = random.uniform(-0.03, 1.03, 2)
        hot = sample(heat, np.array(cx), np.array(cy)) + random.normal(0, 0.1)
        shade = sample(tone, np.array(cx), np.array(cy)) + random.normal(0, 0.16)
        colour = ramp(np.array(shade), warm if hot > 0.47 else cool)
        coarse = 2.0 if place < 900 else 1.35
        angle = random.choice([0.15, 1.45, -0.7]) + random.normal(0, 0.18)
        length, width = coarse * random.uniform(0.03, 0.06), coarse * random.uniform(0.016, 0.026)
        brush.stroke((cx, cy), float(angle), length, width, colour)
    return picture


def meadow(size: int) -> Array:
    """A garden in soft broken strokes: greens, lilac, rose, points of white and red."""
    random = np.random.default_rng(29)
    fields = Fields(13)
    picture = blank(size, "7fa06a")
    brush = Brush(picture, random, bristle=0.08, ragged=0.35, opacity=0.9)
    greens = palette("2f5d3a", "4f8a4b", "86b25a", "c3d37a", "eef0b8")
    skies = palette("5b6fb0", "8fa3d9", "c3b6e4", "f0d3e6", "fdf3ea")
    blooms = palette("e0466b", "f7a6c0", "ffffff", "f6d743", "9b59c0")
    where, tone = fields.field(0.22), fields.field(0.07)
    for place in range(5200):
        cx, cy = random.uniform(-0.02, 1.02, 2)
        point = np.array(cx), np.array(cy)
        shade = sample(tone, *point) + random.normal(0, 0.14)
        colour = ramp(np.array(shade), greens if sample(where, *point) > 0.5 else skies)
        angle = 0.9 + 1.2 * (float(sample(where, *point)) - 0.5) + random.normal(0, 0.35)
        length, width = random.uniform(0.02, 0.045), random.uniform(0.007, 0.012)
        if place > 4300 and sample(tone, *point) > 0.42:
            colour, length, width = blooms[random.integers(5)], 0.015, 0.012
        brush.stroke((cx, cy), angle, length, width, colour, random.normal(0, 0.1))
    return picture


def dabs(size: int) -> Array:
    """Dabs of pure colour, one beside another, as the pointillists set them."""
    random = np.random.default_rng(5)
    x, y = grid(size)
    picture = blank(size, "f4e3d0")
    warm = palette("f2545b", "ff9f45", "ffd84d", "f78fb3", "e0348b")
    cool = palette("1d5f9e", "33b5b0", "2f3f8f", "6fc04a", "7d55b8")
    field = Fields(6).field(0.14)
    for _ in range(3600):
        cx, cy = random.uniform(-0.02, 1.02, 2)
        radius = random.uniform(0.0085, 0.0145)
        here = sample(field, np.array(cx), np.array(cy))
        family = warm if here + random.normal(0, 0.12) > 0.5 else cool
        colour = np.clip(family[random.integers(len(family))] + random.normal(0, 0.03, 3), 0, 1)
        spans = [((c - radius) * size - 1, (c + radius) * size + 2) for c in (cy, cx)]
        window = tuple(slice(max(0, int(low)), max(0, int(high))) for low, high in spans)
        distance = np.hypot(x[window] - cx, y[window] - cy)
        picture[window] = lay(picture[window], edge(radius - distance, size), colour)
    return picture
