"""Pictures of flat pieces: glass, paper, facets, geometry."""

from __future__ import annotations

import numpy as np

from .pieces import Array, Fields, blank, cells, edge, grid, lattice, lay, palette, ramp, sample


def mosaic(size: int) -> Array:
    """Glass cells with dark leading between them: a Voronoi diagram of a jittered lattice."""
    random = np.random.default_rng(7)
    sites = lattice(15, 0.48, random)
    colours = palette(
        "0b3c8c", "1566c0", "18a0d8", "f2a900", "f7d117", "ee5a24", "c8102e", "0f8f7a", "f5ead0"
    )
    field = Fields(8).field(0.2)
    chosen = sample(field, sites[:, 0], sites[:, 1]) * len(colours)
    chosen = (chosen + random.normal(0, 1.3, len(sites))).astype(int) % len(colours)
    tints = np.clip(colours[chosen] * random.uniform(0.85, 1.15, (len(sites), 1)), 0, 1)
    owner, gap = cells(size, sites)
    x, y = grid(size)
    glow = 0.92 + 0.2 * np.clip(gap * 15, 0, 0.8) + 0.1 * (Fields(3).at(x, y, 0.03) - 0.5)
    glass = np.clip(tints[owner] * glow[..., None], 0, 1)
    return lay(blank(size, "14100f"), edge(gap - 0.009, size), glass)


def cutouts(size: int) -> Array:
    """Painted paper cut with scissors: leaves of seaweed on panels of strong colour."""
    random = np.random.default_rng(41)
    x, y = grid(size)
    panels = palette("f4efe2", "f2b632", "1f4fa3", "e2513b", "2f8f5b", "f29ab2", "191919")
    rows = (
        np.floor(y * 4 + 0.05 * np.sin(7 * x)).astype(int),
        np.floor(x * 4 + 0.04 * np.sin(9 * y)).astype(int),
    )
    order = random.permutation(64) % len(panels)
    which = order[(rows[0] * 7 + rows[1] * 3) % 64]
    picture: Array = panels[which]
    for row in range(5):
        for column in range(5):
            cx, cy = (column + random.uniform(0.1, 0.9)) / 5, (row + random.uniform(0.1, 0.9)) / 5
            turn, lobes = random.uniform(0, 6.3), random.integers(4, 8)
            dx, dy = x - cx, y - cy
            radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) + turn
            wobble = np.cos(lobes * angle + 2.0 * np.sin(angle)) + 0.35 * np.cos(2 * angle + turn)
            reach = random.uniform(0.085, 0.125) * (0.62 + 0.42 * wobble)
            ground = order[(int(cy * 4) * 7 + int(cx * 4) * 3) % 64]
            colour = panels[(ground + random.integers(1, len(panels))) % len(panels)]
            picture = lay(picture, edge(0.7 * (reach - radius), size), colour)
    return picture


def cubist(size: int) -> Array:
    """Facets that lean over each other, each shaded from edge to edge: ochre, umber, slate."""
    random = np.random.default_rng(53)
    x, y = grid(size)
    earth = palette("2b2118", "6b4a2b", "a9793f", "d8b071", "efe0b9")
    slate = palette("1c2733", "3f5a68", "7f9aa0", "c9d3c9", "f0e9d2")
    picture = blank(size, "8a6a44")
    for index in range(190):
        cx, cy = random.uniform(0, 1, 2)
        spread = 0.5 if index < 40 else 0.22 if index < 120 else 0.12
        inside = np.full_like(x, np.inf)
        angles = np.sort(random.uniform(0, 2 * np.pi, 4)) + random.normal(0, 0.1)
        for angle in angles:
            reach = spread * random.uniform(0.2, 0.5)
            plane = reach - (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
            inside = np.minimum(inside, plane)
        inside = np.minimum(inside, spread - np.hypot(x - cx, y - cy))
        colours = earth if random.uniform() < 0.62 else slate
        axis = random.uniform(0, 2 * np.pi)
        fade = ((x - cx) * np.cos(axis) + (y - cy) * np.sin(axis)) / spread
        paint = ramp(random.uniform(0.15, 0.85) + 0.5 * fade, colours)
        picture = lay(picture, 0.93 * edge(inside, size), paint)
        line = edge(0.0028 - np.abs(inside), size)
        picture = lay(picture, 0.85 * line, palette("1a120c")[0])
    return picture


def geometry(size: int) -> Array:
    """Circles, bars and triangles that float on cream, after the Bauhaus."""
    random = np.random.default_rng(67)
    x, y = grid(size)
    colours = palette(
        "d7263d", "f49d37", "f6d743", "1b6ca8", "0f2e5c", "2aa198", "151515", "e9c9b1"
    )
    picture = lay(
        blank(size, "f3ead7"), 0.35 * (Fields(70).at(x, y, 0.2) - 0.3), palette("e3a857")[0]
    )
    for index in range(105):
        cx, cy, angle = *random.uniform(0, 1, 2), random.uniform(0, np.pi)
        scale = 0.11 if index < 25 else 0.06 if index < 60 else 0.034
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        colour = colours[random.integers(len(colours))]
        kind = index % 5
        if kind == 0:
            inside = scale - np.hypot(u, v)
            picture = lay(picture, edge(inside, size), colour)
            inside = scale * 0.55 - np.hypot(u, v)
            colour = colours[random.integers(len(colours))]
        elif kind == 1:
            inside = np.minimum(2.2 * scale - np.abs(u), 0.13 * scale + 0.003 - np.abs(v))
        elif kind == 2:
            inside = np.minimum(scale * 0.6 + v, scale * 0.8 - 0.87 * np.abs(u) - 0.5 * v)
        elif kind == 3:
            inside = 0.005 - np.abs(np.hypot(u, v) - scale)
        else:
            checks = np.mod(np.floor(u / scale * 3) + np.floor(v / scale * 3), 2) * 2 - 1
            inside = np.minimum(np.minimum(scale - np.abs(u), scale * 0.67 - np.abs(v)), checks)
        picture = lay(picture, edge(inside, size), colour)
    return picture


def crystal(size: int) -> Array:
    """Splinters of ice and amethyst: long facets with lit edges."""
    random = np.random.default_rng(71)
    x, y = grid(size)
    warp = Fields(72).at(x, y, 0.2)
    u, v = x * 1.0 + 0.45 * y + 0.2 * warp, (y - 0.45 * x) * 0.42 + 0.1 * warp
    sites = random.uniform(-0.3, 1.6, (520, 2)) * [1, 0.75]
    owner, gap = cells(size, sites, u, v)
    colours = palette(
        "1a0b3b", "3c1a78", "6a3fb5", "b06fd8", "f0a8e0", "bdf3f2", "3fb8c9", "0e5a7a"
    )
    tone = sample(Fields(73).field(0.22), sites[:, 0], sites[:, 1]) + random.normal(
        0, 0.16, len(sites)
    )
    slant = random.uniform(-1, 1, (len(sites), 2))
    lean = (u - sites[owner, 0]) * slant[owner, 0] + (v - sites[owner, 1]) * slant[owner, 1]
    picture = ramp(tone[owner] + 4.0 * lean, colours)
    return lay(picture, 0.8 * edge(0.0035 - gap, size), palette("f4fbff")[0])
