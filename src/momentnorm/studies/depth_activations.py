"""Why normalization at all: the activations of a deep network, by norm, while it learns.

The same small convolutional network, with the same first weights and the same images, is trained
for a few steps without a norm and with each of the family. What every layer gives to the next one
is measured on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import momentnorm

from ..support.machine import available_memory, is_out_of_memory
from .errors import StudyError

_Maker = Callable[[int], nn.Module]

NORMS: dict[str, tuple[str, _Maker]] = {
    "none": ("no norm", lambda channels: nn.Identity()),
    "batch": ("BatchNorm", momentnorm.BatchNorm2d),
    "layer": ("LayerNorm over (C, H, W)", lambda channels: momentnorm.GroupNorm(1, channels)),
    "instance": (
        "InstanceNorm",
        lambda channels: momentnorm.InstanceNorm2d(channels, affine=True),
    ),
    "group": ("GroupNorm, 4 groups", lambda channels: momentnorm.GroupNorm(4, channels)),
    "switchable": ("SwitchableNorm", momentnorm.SwitchableNorm2d),
}

#: What is measured of the activations of a layer, and how it is called.
MEASURES = {
    "mean": "mean of the activations",
    "var": "variance of a unit between images",
    "dead": "share of dead units",
    "gradient": "gradient: root mean square of dL/d(activation)",
}

#: Of an activation, what its layer keeps for the way back, and their gradients: at the least
#: (measured), so that nothing is refused that there is room for.
_BYTES_PER_VALUE = 48
_SMALLER = "choose a smaller size, batch, depth or number of channels"


@dataclass
class Course:
    """What one network did: by step (the first is before any training) and layer."""

    norm: str
    title: str
    loss: list[float] = field(default_factory=list)
    mean: list[list[float]] = field(default_factory=list)
    var: list[list[float]] = field(default_factory=list)
    dead: list[list[float]] = field(default_factory=list)
    gradient: list[list[float]] = field(default_factory=list)


@dataclass
class Study:
    """The courses of all networks, and what they have in common."""

    depth: int
    channels: int
    size: int
    batch: int
    steps: int
    rate: float
    gain: float
    seed: int
    courses: list[Course]

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists alone; a number that is none is None."""
        return _finite(asdict(self))  # type: ignore[no-any-return]


def study(
    norms: list[str] | None = None,
    *,
    depth: int = 16,
    channels: int = 8,
    size: int = 12,
    batch: int = 16,
    steps: int = 16,
    rate: float = 0.02,
    gain: float = 1.0,
    seed: int = 0,
) -> Study:
    """Train each network for a few steps, and measure.

    Each has ``depth`` times convolution (3 x 3, torch's own first weights times ``gain``), norm
    and ReLU; then the average of each channel, and a linear layer that says which of four
    directions the stripes of an image have. The images are made here. Everything is in float64,
    so that rounding does not reach the digits that are shown. (A deeper InstanceNorm network, or a
    longer training, multiplies it until it does: 20 layers need 20 steps.)

    A *unit* is one activation of the feature map; it is *dead* where it is 0 for every image of
    the batch.

    Raises:
        StudyError: an unknown norm; a size that is too small, or needs more memory than there is;
            a rate or gain that is not finite; a seed that is none.
    """
    chosen = list(NORMS) if norms is None else norms
    for name in chosen:
        if name not in NORMS:
            raise StudyError(f"no norm is named {name!r}: choose of {', '.join(NORMS)}")
    for what, value, least in (
        ("depth", depth, 1),
        ("channels", channels, 4),
        ("size", size, 4),
        ("batch", batch, 4),
        ("steps", steps, 0),
    ):
        if value < least:
            raise StudyError(f"{what} {value}: at least {least}")
    if channels % 4:
        raise StudyError(f"channels {channels}: a multiple of 4, for GroupNorm's groups")
    if not (math.isfinite(rate) and rate >= 0):
        raise StudyError(f"rate {rate:g}: a finite number from 0 up")
    if not math.isfinite(gain):
        raise StudyError(f"gain {gain:g}: a finite number")
    if not 0 <= seed < 2**63:
        raise StudyError(f"seed {seed}: a whole number from 0 to 2**63 - 1")
    needed = depth * batch * channels * size**2 * _BYTES_PER_VALUE
    # Linux promises more memory than it has, and then kills the program without a word.
    if needed > (available_memory() or math.inf):
        raise StudyError(f"more than {needed // 10**6} MB of memory are needed: {_SMALLER}")
    common = depth, channels, size, batch, steps, rate, gain, seed
    state = torch.random.get_rng_state()
    try:
        return Study(*common, [_course(name, *common) for name in chosen])
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StudyError(f"not enough memory: {_SMALLER}") from error
    finally:
        torch.random.set_rng_state(state)


def stripes(count: int, size: int) -> tuple[Tensor, Tensor]:
    """(count, 1, size, size): stripes in four directions under noise; and which, (count,)."""
    direction = torch.arange(count) % 4
    angle = direction.double() * (torch.pi / 4)
    place = torch.arange(size, dtype=torch.float64)
    down, across = place.view(1, -1, 1), place.view(1, 1, -1)
    along = across * angle.cos().view(-1, 1, 1) + down * angle.sin().view(-1, 1, 1)
    phase = torch.rand(count, 1, 1, dtype=torch.float64) * 2 * torch.pi
    noise = torch.randn(count, size, size, dtype=torch.float64)
    return (torch.sin(along * 1.6 + phase) + 0.5 * noise).unsqueeze(1), direction


def _course(
    name: str,
    depth: int,
    channels: int,
    size: int,
    batch: int,
    steps: int,
    rate: float,
    gain: float,
    seed: int,
) -> Course:
    title, make = NORMS[name]
    course = Course(name, title)
    torch.manual_seed(seed)
    convolutions = [
        nn.Conv2d(1 if layer == 0 else channels, channels, 3, padding=1, dtype=torch.float64)
        for layer in range(depth)
    ]
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.mul_(gain)
    head = nn.Linear(channels, 4, dtype=torch.float64)
    images, directions = stripes(batch, size)
    norms = [make(channels).double() for _ in range(depth)]
    network = nn.ModuleList([*convolutions, *norms, head])
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    for step in range(steps + 1):
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
        _measure(course, activations)
        if step < steps:
            optimizer.step()
    return course


@torch.no_grad()
def _measure(course: Course, activations: list[Tensor]) -> None:
    course.mean.append([x.mean().item() for x in activations])
    course.var.append([x.var(0, correction=0).mean().item() for x in activations])
    course.dead.append([(x == 0).all(0).double().mean().item() for x in activations])
    gradients = [x.grad for x in activations]
    course.gradient.append(
        [0.0 if grad is None else grad.square().mean().sqrt().item() for grad in gradients]
    )


def table(found: Study) -> str:
    """The loss, and the first, middle and last layer, before training and after, as text."""
    layers = sorted({0, found.depth // 2, found.depth - 1})
    steps = sorted({0, found.steps})
    wide = max(len(course.title) for course in found.courses)
    when = ["before training" if step == 0 else f"after {step} steps" for step in steps]
    lines = [
        f"{found.depth} layers of {found.channels} channels, {found.batch} images of "
        f"{found.size} x {found.size} pixels, {found.steps} steps of SGD, seed {found.seed}",
        "",
        "loss (4 directions: guessing has ln 4 = 1.386)",
        " " * wide + "".join(f"  {text:>15}" for text in when),
    ]
    for course in found.courses:
        losses = "".join(f"  {_cell('loss', course.loss[step]):>15}" for step in steps)
        lines.append(f"{course.title:<{wide}}{losses}")
    names = "".join(f"{f'layer {layer + 1}':>10}" for layer in layers)
    for measure, what in MEASURES.items():
        lines += ["", what, " " * wide + "".join(f"  {text:<{len(names)}}" for text in when)]
        lines.append(" " * wide + f"  {names}" * len(steps))
        for course in found.courses:
            cells = ""
            for step in steps:
                row = getattr(course, measure)[step]
                cells += "  " + "".join(f"{_cell(measure, row[layer]):>10}" for layer in layers)
            lines.append(f"{course.title:<{wide}}{cells}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _cell(measure: str, value: float) -> str:
    if measure == "dead":
        return f"{value:.0%}"
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}"


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    if isinstance(values, float) and (values != values or values in (float("inf"), -float("inf"))):
        return None
    return values
