"""Training of a network of one style, with any norm, over random crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .content import Crops, generator_of
from .errors import StylizeError
from .features import Features, RandomFeatures
from .losses import content_loss, total_variation
from .network import Architecture, Network
from .objective import StyleTarget, scaled
from .trunk import STRIDE

#: Photographs on which random features are calibrated.
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class Settings:
    """Numbers that decide a training of a network of one style."""

    norm: str = "instance"
    width: int = 16
    blocks: int = 3
    steps: int = 1500
    batch: int = 4
    size: int = 96
    lr: float = 2e-3
    content_weight: float = 0.5
    style_weight: float = 0.5
    sliced_weight: float = 8.0
    tv_weight: float = 0.3
    style_size: int = 256
    seed: int = 0
    feature_seed: int = 0

    def __post_init__(self) -> None:
        Architecture(self.norm, self.width, self.blocks)
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise StylizeError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.size < 32 or self.size % STRIDE:
            raise StylizeError(f"size is {self.size}; a multiple of {STRIDE} from 32 up is needed")
        if self.style_size < 32:
            raise StylizeError(f"style size is {self.style_size}; at least 32 is needed")
        for name in ("seed", "feature_seed"):
            if not 0 <= getattr(self, name) < 2**40:
                raise StylizeError(f"{name} is {getattr(self, name)}; 0 to 2**40 - 1 is needed")
        for name in ("lr", "content_weight", "style_weight", "sliced_weight", "tv_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise StylizeError(f"{name} is {value}; a finite number from 0 up is needed")

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.norm, self.width, self.blocks)


#: Named terms of one step's loss, and their weighted sum as ``loss``.
Losses = dict[str, float]
OnStep = Callable[[int, Losses, Network], None]


def train(
    style_image: Tensor,
    content: Sequence[str],
    settings: Settings | None = None,
    *,
    features: Features | None = None,
    on_step: OnStep | None = None,
    note: Callable[[str], None] = lambda text: None,
    device: str | torch.device = "cpu",
    build: Callable[[Architecture], Network] = Network,
) -> Network:
    """Train a network of one style.

    On a CPU the result is the same to the bit for the same arguments and number of threads.

    Args:
        style_image: the style picture, (3, H, W) in [0, 1].
        content: files of photographs, or ``skimage:NAME``.
        settings: see :class:`Settings`.
        features: the loss network; without one, :class:`RandomFeatures` on the photographs.
        on_step: function that is called after every step with its number from 1, its losses, and
            the network.
        note: function that is told of a photograph that cannot be read.
        device: where to train.
        build: makes the network to train.

    Raises:
        StylizeError: a loss that is no longer finite.
    """
    settings = settings or Settings()
    crops = Crops(content, settings.size, settings.seed, note)
    if features is None:
        features = RandomFeatures(crops.batch(0, CALIBRATION_BATCH), settings.feature_seed)
    # Convolutions are faster in this layout.
    features = features.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    target = StyleTarget(features, scaled(style_image.to(device), settings.style_size))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build(settings.architecture)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(settings, step)
        losses = _step(network, optimizer, target, crops, settings, step, device)
        if not math.isfinite(losses["loss"]):
            raise StylizeError(
                f"the loss is {losses['loss']} at step {step}; train again with a lower --lr"
            )
        if on_step is not None:
            on_step(step, losses, network)
    return network.eval()


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    target: StyleTarget,
    crops: Crops,
    settings: Settings,
    step: int,
    device: str | torch.device,
) -> Losses:
    photographs = crops.batch(step, settings.batch).to(device)
    random = generator_of(settings.seed, step)
    losses = losses_of(network(photographs), photographs, target, settings, random)
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}


def losses_of(
    pictures: Tensor,
    photographs: Tensor,
    target: StyleTarget,
    settings: Settings,
    random: torch.Generator,
) -> dict[str, Tensor]:
    """The loss of pictures, (N, 3, H, W), of these photographs, and its terms by name."""
    with torch.no_grad():
        content_target = target.features.content_layer(photographs)
    statistics, sliced = target.losses(pictures, random)
    terms = {
        "style": statistics,
        "sliced": sliced,
        "content": content_loss(target.features.content_layer(pictures), content_target),
        "tv": total_variation(pictures),
    }
    loss = (
        settings.style_weight * terms["style"]
        + settings.sliced_weight * terms["sliced"]
        + settings.content_weight * terms["content"]
        + settings.tv_weight * terms["tv"]
    )
    return {"loss": loss} | terms


def _learning_rate(settings: Settings, step: int) -> float:
    """Learning rate at a step from 1: a cosine down to a twentieth of the peak."""
    share = (step - 1) / settings.steps
    return settings.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
