"""Small networks, styles and pictures for the tests of the application."""

from __future__ import annotations

import numpy as np
import torch

from momentnorm.stylize import Style, Trunk, TrunkShape
from momentnorm.stylize.network import Architecture, Network

#: Size of the trunks in the tests.
SHAPE = TrunkShape(width=4, blocks=2)


def small_network(norm: str = "instance", seed: int = 0) -> Network:
    """Network with every parameter away from its initial value, so that none can be forgotten."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(Architecture(norm, width=4, blocks=1))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def small_trunk(seed: int = 0, shape: TrunkShape = SHAPE) -> Trunk:
    """Trunk with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Trunk(shape).eval().requires_grad_(False)


def random_vectors(count: int, seed: int = 1, shape: TrunkShape = SHAPE) -> torch.Tensor:
    """Random styles of a small trunk, (count, S)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, shape.numbers, generator=random)


def small_style(seed: int = 1, trunk: Trunk | None = None) -> Style:
    """Random style on a small trunk."""
    trunk = trunk or small_trunk()
    (vector,) = random_vectors(1, seed, trunk.shape)
    return Style(vector, trunk, picture="nothing", name=f"style {seed}")


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth with some noise, (H, W, C) bytes: JPEG must be able to hold it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + c) + y / (7 + seed) + c) for c in range(channels)]
    values = 127 + 100 * np.stack(waves, -1) + random.normal(0, 4, (height, width, channels))
    return np.clip(values, 0, 255).astype(np.uint8)
