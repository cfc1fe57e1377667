"""Training of the trunk: all styles at once, resumable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .content import Crops, generator_of
from .errors import StylizeError, one_line
from .features import Features, luminance
from .grain import grained
from .losses import StyleStatistics, style_statistics, total_variation
from .trunk import Trunk, TrunkShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Colours that stand for a style picture's, and pixels that are compared with them in a step.
PALETTE = 256
PIXELS = 1024

#: Pictures are moved by up to this many pixels before they are compared. The loss network has
#: strides, so pictures that it always saw at one place would get a grid.
JITTER = 3

#: The style distance of an untouched photograph, to which distances are scaled for every style.
UNTOUCHED = 8.0


@dataclass(frozen=True)
class TrunkSettings:
    """Numbers that decide a training of the trunk.

    ``content_weight`` is that of every style without one of its own in ``content_weights``.
    """

    steps: int = 4000
    batch: int = 4
    size: int = 128
    lr: float = 2e-3
    style_lr: float = 1e-2
    content_weight: float = 2.0
    palette_weight: float = 6.0
    tv_weight: float = 0.5
    seed: int = 0


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak at a step from 1: a short climb, then a cosine down to a fiftieth."""
    climb = min(1.0, step / 100)
    return climb * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 1) / steps))))


def _per_sample_error(value: Tensor, target: Tensor) -> Tensor:
    """(N,) squared distance as a share of the target's square."""
    difference, size = (value - target).flatten(1), target.flatten(1)
    return difference.square().sum(1) / size.square().sum(1).clamp_min(1e-12)


def style_distances(features: Sequence[Tensor], targets: Sequence[StyleStatistics]) -> Tensor:
    """(N,): how far each sample's statistics are from its own target's, summed over the layers."""
    total = torch.zeros(features[0].shape[0], device=features[0].device)
    for layer, target in zip(features, targets, strict=True):
        found = style_statistics(layer)
        total = total + _per_sample_error(found.mean, target.mean)
        total = total + _per_sample_error(found.covariance, target.covariance)
    return total


def drawing(image: Tensor) -> Tensor:
    """Luminance with a mean of 0.5 and a deviation of 0.25, (N, 3, H, W).

    Content is compared on it, which leaves colour, brightness and contrast to the style.
    """
    grey = luminance(image)
    deviation, mean = torch.std_mean(grey, (1, 2, 3), correction=0, keepdim=True)
    return ((grey - mean) / deviation.clamp_min(0.05) * 0.25 + 0.5).expand_as(image)


def content_distances(features: Features, pictures: Tensor, photographs: Tensor) -> Tensor:
    """(N,): how far each picture's features are from its photograph's."""
    with torch.no_grad():
        target = features.content_layer(drawing(photographs))
        variance = target.var((1, 2, 3), correction=0).clamp_min(1e-12)
    found = features.content_layer(drawing(pictures))
    return (found - target).square().mean((1, 2, 3)) / variance


def palette_of(picture: Tensor) -> Tensor:
    """(PALETTE, 3): colours of pixels of (3, H, W), evenly spaced."""
    pixels = picture.flatten(1).mT
    places = torch.linspace(0, len(pixels) - 1, PALETTE).round().long()
    return pixels[places]


def palette_distances(pictures: Tensor, palettes: Tensor, random: torch.Generator) -> Tensor:
    """(N,): squared distance of random pixels to the nearest colour of the style picture.

    It is a share of the variance of those colours. The statistics of the loss network alone leave
    flat areas free to take colours that the style picture does not have.

    Args:
        pictures: (N, 3, H, W).
        palettes: (N, K, 3).
        random: of the pixels' places.
    """
    places = torch.randint(pictures.shape[2:].numel(), (PIXELS,), generator=random)
    pixels = pictures.flatten(2)[..., places].mT  # (N, PIXELS, 3)
    squares = pixels.square().sum(2, keepdim=True) + palettes.square().sum(2).unsqueeze(1)
    nearest = (squares - 2 * pixels @ palettes.mT).min(2).values.clamp_min(0)
    return nearest.mean(1) / palettes.var(1, correction=0).sum(1)


def moved(images: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """The images, (N, 3, H, W) each, less a border that is another one each time."""
    top, left = torch.randint(JITTER + 1, (2,), generator=random).tolist()
    height, width = (side - JITTER for side in images[0].shape[2:])
    return [image[..., top : top + height, left : left + width] for image in images]


def tinted(photographs: Tensor, random: torch.Generator) -> Tensor:
    """Photographs with other colours: channels exchanged, brightness and contrast changed."""
    count = len(photographs)
    result = photographs.clone()
    for index in range(count):
        order, gains = torch.randperm(3, generator=random), torch.rand(3, generator=random)
        keep, gamma = torch.rand(2, generator=random).tolist()
        if keep < 0.4:
            result[index] = result[index, order] * (0.7 + 0.6 * gains.view(3, 1, 1))
        result[index] = result[index].clamp(0, 1) ** (2 ** (1.6 * gamma - 0.8))
    return result


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :meth:`TrunkTraining.save` wrote.

    Raises:
        StylizeError: the file is something else.
    """
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise StylizeError(
            f"{path}: no checkpoint of a trunk ({one_line(error)[:100]}); name another file"
        ) from error
    if not isinstance(state, dict) or not {"names", "step", "trunk", "styles"} <= state.keys():
        raise StylizeError(f"{path}: no checkpoint of a trunk; name another file")
    return state


class TrunkTraining:
    """A trunk, a table of styles, and what moves them towards their pictures.

    Args:
        pictures: style pictures by name, (3, H, W) in [0, 1], at the size at which they are seen.
        content: files of photographs, or ``skimage:NAME``.
        features: the loss network.
        shape: of the trunk.
        settings: numbers of the training.
        content_weights: by the style's name.
    """

    def __init__(
        self,
        pictures: Mapping[str, Tensor],
        content: Sequence[str],
        features: Features,
        shape: TrunkShape,
        settings: TrunkSettings,
        content_weights: Mapping[str, float],
    ) -> None:
        self.names = list(pictures)
        self.settings = settings
        self.features = features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crops = Crops(content, settings.size, settings.seed)
        default = settings.content_weight
        self.content_weights = torch.tensor(
            [content_weights.get(name, default) for name in self.names]
        )
        self.palettes = torch.stack([palette_of(picture) for picture in pictures.values()])
        with torch.no_grad():
            layers = [features.style_layers(picture.unsqueeze(0)) for picture in pictures.values()]
            each = [[style_statistics(layer) for layer in found] for found in layers]
        #: By layer: statistics of all style pictures, (K, ...).
        self.targets = [
            StyleStatistics(
                torch.cat([s.mean for s in layer]), torch.cat([s.covariance for s in layer])
            )
            for layer in zip(*each, strict=True)
        ]
        self.shares = self._shares()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.trunk = Trunk(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            start = self.trunk.new_style()
        self.styles = nn.Parameter(start.repeat(len(self.names), 1))  # (K, S)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.trunk.parameters()), "peak": settings.lr},
                {"params": [self.styles], "peak": settings.style_lr},
            ],
            betas=(0.9, 0.99),
        )
        self.done = 0

    def _shares(self) -> Tensor:
        """(K,): factors that make style distances shares of a photograph's, in units of 1/8.

        Without them a style far from every photograph, like ink on paper, would drown the others.
        """
        photographs = self.crops.batch(0, 16)
        with torch.no_grad():
            layers = self.features.style_layers(photographs)
            count = len(photographs)
            distances = []
            for index in range(len(self.names)):
                rows = [index] * count
                targets = [StyleStatistics(t.mean[rows], t.covariance[rows]) for t in self.targets]
                distances.append(style_distances(layers, targets).mean())
        return UNTOUCHED / torch.stack(distances)

    def step(self) -> dict[str, Tensor]:
        """One step; the losses of its samples, (N,) each, and the labels of their styles."""
        settings, step = self.settings, self.done + 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(step, settings.steps)
        random = generator_of(settings.seed + 1, step)
        photographs = tinted(self.crops.batch(step, settings.batch), random)
        photographs = photographs.contiguous(memory_format=torch.channels_last)
        labels = self._labels(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pictures = self.trunk(grained(photographs, random), self.styles[labels])
        pictures, photographs = moved([pictures.float(), photographs], random)
        layers = self.features.style_layers(pictures)
        targets = [StyleStatistics(t.mean[labels], t.covariance[labels]) for t in self.targets]
        style = style_distances(layers, targets) * self.shares[labels]
        content = content_distances(self.features, pictures, photographs)
        palette = palette_distances(pictures, self.palettes[labels], random)
        variation = total_variation(pictures)
        loss = style + self.content_weights[labels] * content + settings.palette_weight * palette
        loss = loss.mean()
        loss = loss + settings.tv_weight * variation
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.trunk.parameters(), self.styles], 10.0)
        self.optimizer.step()
        self.done = step
        losses = {"style": style, "content": content, "palette": palette}
        return {"labels": labels} | {name: value.detach() for name, value in losses.items()}

    def _labels(self, step: int) -> Tensor:
        """The styles of a step's samples: each of them once before any comes again."""
        count = len(self.names)
        first = (step - 1) * self.settings.batch
        places = range(first, first + self.settings.batch)
        orders = {
            place // count: torch.randperm(
                count, generator=generator_of(self.settings.seed + 2, place // count)
            )
            for place in places
        }
        return torch.stack([orders[place // count][place % count] for place in places])

    def save(self, path: Path) -> None:
        """Write a checkpoint. Either the whole file is there afterwards or the old one."""
        new = path.with_suffix(".new")
        state = {
            "names": self.names,
            "step": self.done,
            "trunk": self.trunk.state_dict(),
            "styles": self.styles.detach(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, new)
        new.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Styles are found by name; a new one starts as their mean.

        Raises:
            StylizeError: the file is no checkpoint of such a trunk.
        """
        state = read_checkpoint(path)
        if state["styles"].shape[1:] != self.styles.shape[1:]:
            raise StylizeError(f"{path}: is of a trunk of another shape; name another file")
        self.trunk.load_state_dict(state["trunk"])
        known = dict(zip(state["names"], state["styles"], strict=True))
        mean = state["styles"].mean(0)
        with torch.no_grad():
            for row, name in zip(self.styles, self.names, strict=True):
                row.copy_(known.get(name, mean))
        if state["names"] == self.names:
            peaks = [group["peak"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.done = state["step"]
