"""Measurement: mean, variance, dead units and gradients of a deep network, by norm and layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...support.machine import available_memory, is_out_of_memory
from ..errors import StudyError
from ..layers import our_layer

#: GroupNorm's number of groups.
GROUPS = 4

#: Norms that are compared, by name, with their titles.
NORMS = {
    "none": "no norm",
    "batch": "BatchNorm",
    "layer": "LayerNorm over (C, H, W)",
    "instance": "InstanceNorm",
    "group": f"GroupNorm, {GROUPS} groups",
    "switchable": "SwitchableNorm",
}

#: Figures of each layer's activations, by field of :class:`Course`, with their titles.
MEASURES = {
    "mean": "mean of the activations",
    "var": "variance of a unit between images",
    "dead": "share of dead units",
    "gradient": "gradient: root mean square of dL/d(activation)",
}

#: Memory of one activation, of what its layer keeps for the backward, and of their gradients. It
#: is the least that was measured, so a size that fits is never refused.
_BYTES_PER_VALUE = 48
_SMALLER = "choose a smaller size, batch, depth or number of channels"


@dataclass(frozen=True)
class Settings:
    """Sizes of the networks and of their images, and the training.

    Args:
        depth: convolutions of each network.
        channels: of each convolution, a multiple of 4.
        size: height and width of an image.
        batch: images; all of them are seen at each step.
        steps: of SGD with momentum 0.9.
        rate: learning rate.
        gain: factor on the first weights that torch draws.
        seed: of the images and of the first weights.

    Raises:
        StudyError: a size that is too small, a rate or gain that is not finite, or a seed outside
            0 to 2**63 - 1.
    """

    depth: int = 16
    channels: int = 8
    size: int = 12
    batch: int = 16
    steps: int = 16
    rate: float = 0.02
    gain: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"depth": 1, "channels": GROUPS, "size": 4, "batch": 4, "steps": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise StudyError(f"{name} is {getattr(self, name)}: choose at least {smallest}")
        if self.channels % GROUPS:
            raise StudyError(
                f"channels is {self.channels}: choose a multiple of {GROUPS}, the number of groups"
            )
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise StudyError(f"rate is {self.rate:g}: choose a finite number from 0 up")
        if not math.isfinite(self.gain):
            raise StudyError(f"gain is {self.gain:g}: choose a finite number")
        if not 0 <= self.seed < 2**63:
            raise StudyError(f"seed is {self.seed}: choose a whole number from 0 to 2**63 - 1")


@dataclass
class Course:
    """Measurements of one network. Index 0 of each list is before any training.

    Args:
        norm: name in :data:`NORMS`.
        loss: one for each step.
        mean, var, dead, gradient: for each step, one for each layer.
    """

    norm: str
    title: str
    loss: list[float] = field(default_factory=list)
    mean: list[list[float]] = field(default_factory=list)
    var: list[list[float]] = field(default_factory=list)
    dead: list[list[float]] = field(default_factory=list)
    gradient: list[list[float]] = field(default_factory=list)


@dataclass
class Activations:
    """Measurements of all networks, and the settings that they share."""

    settings: Settings
    courses: list[Course]

    def to_dict(self) -> dict[str, Any]:
        """Settings and courses as JSON can hold them, with None for NaN and infinity."""
        found = {**asdict(self.settings), "courses": [asdict(course) for course in self.courses]}
        return _finite(found)  # type: ignore[no-any-return]


def measure(norms: Sequence[str] | None = None, settings: Settings | None = None) -> Activations:
    """Train a network with each norm for a few steps, and measure its activations.

    A network has ``depth`` times convolution (3 x 3), norm and ReLU, then the average of each
    channel and a linear layer. It says in which of four directions the stripes of an image run.
    All networks have equal first weights and equal images. The images are made here.

    Computation is in float64, so that rounding does not reach the digits that are shown. Training
    multiplies rounding errors: with InstanceNorm and 20 layers they show after 20 steps.

    A *unit* is one activation of a feature map. It is *dead* where it is 0 for every image of the
    batch.

    Args:
        norms: names in :data:`NORMS`; default all.
        settings: default :class:`Settings`.

    Raises:
        StudyError: an unknown norm, or sizes that need more memory than there is.
    """
    settings = settings or Settings()
    chosen = list(NORMS) if norms is None else norms
    for name in chosen:
        if name not in NORMS:
            raise StudyError(f"no norm is named {name!r}: choose from {', '.join(NORMS)}")
    values = settings.depth * settings.batch * settings.channels * settings.size**2
    needed = values * _BYTES_PER_VALUE
    # Linux promises more memory than it has, and kills the program when that is used.
    if needed > (available_memory() or math.inf):
        raise StudyError(f"more than {needed // 10**6} MB of memory are needed: {_SMALLER}")
    state = torch.random.get_rng_state()
    try:
        return Activations(settings, [_course(name, settings) for name in chosen])
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StudyError(f"not enough memory: {_SMALLER}") from error
    finally:
        torch.random.set_rng_state(state)


def stripes(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images of stripes under noise, (count, 1, size, size), and their directions, (count,)."""
    direction = torch.arange(count) % 4
    angle = direction.double() * (torch.pi / 4)
    place = torch.arange(size, dtype=torch.float64)
    down, across = place.view(1, -1, 1), place.view(1, 1, -1)
    along = across * angle.cos().view(-1, 1, 1) + down * angle.sin().view(-1, 1, 1)
    phase = torch.rand(count, 1, 1, dtype=torch.float64) * 2 * torch.pi
    noise = torch.randn(count, size, size, dtype=torch.float64)
    return (torch.sin(along * 1.6 + phase) + 0.5 * noise).unsqueeze(1), direction


def _course(name: str, settings: Settings) -> Course:
    """Train one network from its seed, and measure it at each step."""
    course = Course(name, NORMS[name])
    torch.manual_seed(settings.seed)
    channels = settings.channels
    convolutions = [
        nn.Conv2d(1 if layer == 0 else channels, channels, 3, padding=1, dtype=torch.float64)
        for layer in range(settings.depth)
    ]
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.mul_(settings.gain)
    head = nn.Linear(channels, 4, dtype=torch.float64)
    images, directions = stripes(settings.batch, settings.size)
    norms = [our_layer(name, channels, num_groups=GROUPS).double() for _ in convolutions]
    network = nn.ModuleList([*convolutions, *norms, head])
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.rate, momentum=0.9)
    for step in range(settings.steps + 1):
        activations: list[Tensor] = []
        x = images
        for convolution, norm in zip(convolutions, norms, strict=True):
            x = torch.relu(norm(convolution(x)))
            x.retain_grad()
            activations.append(x)
        loss = nn.functional.cross_entropy(head(x.mean((2, 3))), directions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        course.loss.append(loss.item())
        add_measures(course, activations)
        if step < settings.steps:
            optimizer.step()
    return course


@torch.no_grad()
def add_measures(course: Course, activations: Sequence[Tensor]) -> None:
    """Measure each layer's activations (N, C, H, W), after the backward, and add a step."""
    course.mean.append([x.mean().item() for x in activations])
    course.var.append([x.var(0, correction=0).mean().item() for x in activations])
    course.dead.append([(x == 0).all(0).double().mean().item() for x in activations])
    gradients = [x.grad for x in activations]
    course.gradient.append(
        [0.0 if grad is None else grad.square().mean().sqrt().item() for grad in gradients]
    )


def _finite(values: Any) -> Any:
    """Nested dictionaries and lists with None in place of NaN and infinity."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
