"""Training of styles: with the trunk, or on a frozen trunk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints import Checkpoint
from .content import Crops, generator_of
from .errors import StylizeError
from .features import Features
from .grain import add_grain, grain
from .losses import StyleStatistics, style_statistics, total_variation
from .objective import scaled
from .trunk import STRIDE, Trunk, TrunkShape
from .trunk_files import trunk_identity
from .trunk_losses import (
    content_distances,
    moved,
    palette_distances,
    palette_of,
    style_distances,
    tinted,
)

#: Style distance of an untouched photograph. Distances are scaled to it for every style.
UNTOUCHED = 8.0
#: Photographs on which the style distance of untouched photographs is measured.
UNTOUCHED_BATCH = 16
#: Bound of the gradient's norm in a step.
LARGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class TrainingSettings:
    """Numbers that decide a training of styles.

    Args:
        steps: number of steps.
        batch: photographs in a step.
        size: side of a crop, pixels.
        lr: peak of Adam's learning rate for the trunk.
        style_lr: peak of Adam's learning rate for the styles.
        content_weight: weight of the photograph's content: the larger, the more readable.
        palette_weight: weight of the distance to the style picture's colours.
        tv_weight: weight of the total variation.
        style_size: longer side to which a style picture is scaled: the larger, the broader the
            strokes.
        seed: seed of weights and crops.
    """

    steps: int = 4000
    batch: int = 4
    size: int = 128
    lr: float = 2e-3
    style_lr: float = 1e-2
    content_weight: float = 2.0
    palette_weight: float = 6.0
    tv_weight: float = 0.5
    style_size: int = 320
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise StylizeError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.size < 32 or self.size % STRIDE:
            raise StylizeError(f"size is {self.size}; a multiple of {STRIDE} from 32 up is needed")
        if self.style_size < 32:
            raise StylizeError(f"style size is {self.style_size}; at least 32 is needed")
        if not 0 <= self.seed < 2**40:
            raise StylizeError(f"seed is {self.seed}; 0 to 2**40 - 1 is needed")
        for name in ("lr", "style_lr", "content_weight", "palette_weight", "tv_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise StylizeError(f"{name} is {value}; a finite number from 0 up is needed")


@dataclass(frozen=True)
class StylePicture:
    """A picture to learn a style from.

    Args:
        rgb: pixels, (3, H, W) in [0, 1].
        title: description of the picture, for the style file.
        style_size: a size in place of the settings' one.
        content_weight: a weight in place of the settings' one.
    """

    rgb: Tensor
    title: str = ""
    style_size: int | None = None
    content_weight: float | None = None


#: Means of one step's losses by name.
Losses = dict[str, float]


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak at a step from 1: a linear climb, then a cosine down to a fiftieth."""
    climb = min(1.0, step / max(1, min(100, steps // 10)))
    return climb * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 1) / steps))))


class StyleTraining:
    """Styles, one for each picture, and the losses that move them towards their pictures.

    Args:
        pictures: style pictures by name.
        content: files of photographs, or ``skimage:NAME``.
        features: the loss network.
        settings: numbers of the training.
        trunk: a trained trunk, which stays as it is. Without one, a new trunk is trained too.
        start: the style that all styles start from, (S,); an untrained one if None.
        shape: size of a new trunk.
        device: where to train.
        note: function that is told of a photograph that cannot be read.

    Raises:
        StylizeError: a style picture that is too small, or no photograph that can be read.
    """

    def __init__(
        self,
        pictures: Mapping[str, StylePicture],
        content: Sequence[str],
        features: Features,
        settings: TrainingSettings,
        *,
        trunk: Trunk | None = None,
        start: Tensor | None = None,
        shape: TrunkShape | None = None,
        device: str | torch.device = "cpu",
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.names = list(pictures)
        self.titles = [picture.title for picture in pictures.values()]
        self.settings = settings
        self.device = torch.device(device)
        self.crops = Crops(content, settings.size, settings.seed, note)
        # Convolutions are faster in this layout.
        self.features = features.to(  # type: ignore[call-overload]
            device=self.device, memory_format=torch.channels_last
        )
        self._set_targets(list(pictures.values()))
        self.learns_trunk = trunk is None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.trunk = trunk or Trunk(shape)
            start = self.trunk.new_style() if start is None else start
        before = trunk_identity(self.trunk)
        self.trunk.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.styles = nn.Parameter(start.to(self.device).repeat(len(self.names), 1))  # (K, S)
        groups = [{"params": [self.styles], "peak": settings.style_lr}]
        if self.learns_trunk:
            groups.append({"params": list(self.trunk.parameters()), "peak": settings.lr})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.checkpoint = Checkpoint(
            self._identity(pictures, before), self._tensors(), self.optimizer
        )
        self.done = 0

    def _set_targets(self, pictures: Sequence[StylePicture]) -> None:
        """Compute what the losses compare with: statistics, palettes and weights, (K, ...)."""
        settings, each, palettes = self.settings, [], []
        for picture in pictures:
            seen = scaled(picture.rgb.to(self.device), picture.style_size or settings.style_size)
            if min(seen.shape[-2:]) < 32:
                raise StylizeError(
                    f"the style picture is {seen.shape[-1]}x{seen.shape[-2]} pixels as it is "
                    "compared; each side must be at least 32"
                )
            with torch.no_grad():
                layers = self.features.style_layers(seen.unsqueeze(0))
            each.append([style_statistics(layer) for layer in layers])
            palettes.append(palette_of(seen))
        self.palettes = torch.stack(palettes)
        #: By layer: statistics of all style pictures.
        self.targets = [
            StyleStatistics(
                torch.cat([s.mean for s in layer]), torch.cat([s.covariance for s in layer])
            )
            for layer in zip(*each, strict=True)
        ]
        weights = [
            settings.content_weight if p.content_weight is None else p.content_weight
            for p in pictures
        ]
        self.content_weights = torch.tensor(weights, device=self.device)
        self.shares = self._shares()

    def _targets_of(self, labels: Tensor | list[int]) -> list[StyleStatistics]:
        return [StyleStatistics(t.mean[labels], t.covariance[labels]) for t in self.targets]

    def _shares(self) -> Tensor:
        """Factors that scale style distances to a photograph's, (K,).

        Without them the losses of a style far from every photograph, such as ink on paper, would
        be many times those of the other styles.
        """
        with torch.no_grad():
            photographs = self.crops.batch(0, UNTOUCHED_BATCH).to(self.device)
            layers = self.features.style_layers(photographs)
            distances = [
                style_distances(layers, self._targets_of([index] * UNTOUCHED_BATCH)).mean()
                for index in range(len(self.names))
            ]
        return UNTOUCHED / torch.stack(distances).clamp_min(1e-6)

    def _identity(self, pictures: Mapping[str, StylePicture], trunk: str) -> str:
        """JSON of all that decides the training's result."""
        known = dataclasses.asdict(self.settings)
        known["style_picture"] = {
            name: [
                hashlib.sha256(
                    (picture.rgb * 255).round().byte().cpu().numpy().tobytes()
                ).hexdigest()[:16],
                picture.style_size,
                picture.content_weight,
            ]
            for name, picture in pictures.items()
        }
        known["content"] = self.crops.fingerprint()
        known["features"] = self.features.name
        known["trunk"] = trunk
        return json.dumps(known, sort_keys=True)

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"styles": self.styles}
        if self.learns_trunk:
            tensors |= self.trunk.state_dict(prefix="trunk.")
        return tensors

    def step(self) -> Losses:
        """Do one step; the means of its losses.

        Raises:
            StylizeError: the loss is no longer finite.
        """
        settings, step = self.settings, self.done + 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(step, settings.steps)
        losses = self._losses(step)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise StylizeError(f"the loss is {loss.item()} at step {step}; choose a lower rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        self.optimizer.step()
        self.done = step
        return {name: value.item() for name, value in losses.items()}

    def _losses(self, step: int) -> dict[str, Tensor]:
        """Weighted sum of a step's losses as ``loss``, and the losses by name."""
        settings = self.settings
        random = generator_of(settings.seed + 1, step)
        photographs = tinted(self.crops.batch(step, settings.batch), random)
        noise = grain(len(photographs), settings.size, settings.size, random)
        grained = add_grain(photographs, noise).to(self.device)
        photographs = photographs.to(self.device)
        labels = self._labels(step).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_has_bfloat16(self.device)):
            pictures = self.trunk(
                grained.contiguous(memory_format=torch.channels_last), self.styles[labels]
            )
        pictures, photographs = moved([pictures.float(), photographs], random)
        layers = self.features.style_layers(pictures)
        style = style_distances(layers, self._targets_of(labels)) * self.shares[labels]
        content = content_distances(self.features, pictures, photographs)
        palette = palette_distances(pictures, self.palettes[labels], random)
        each = style + self.content_weights[labels] * content + settings.palette_weight * palette
        variation = total_variation(pictures)
        return {
            "loss": each.mean() + settings.tv_weight * variation,
            "style": style.mean(),
            "content": content.mean(),
            "palette": palette.mean(),
        }

    def _labels(self, step: int) -> Tensor:
        """Indices of the styles of a step's samples. Each style comes once in every K samples."""
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

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: int = 25,
        on_step: Callable[[int, Losses], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step; whether it was reached.

        On a CPU the result is the same to the bit for the same arguments and number of threads,
        however often the training was stopped and resumed.

        Args:
            checkpoint: file from which the training goes on. It is written every
                ``checkpoint_every`` steps, after the last step, and when the training stops.
            checkpoint_every: steps between checkpoints.
            on_step: function that is called after every step with its number from 1 and its losses.
            should_stop: function that is asked after every step but the last.

        Raises:
            StylizeError: a checkpoint of another training, or a loss that is no longer finite.
        """
        steps = self.settings.steps
        if checkpoint is not None and checkpoint.exists():
            self.done = self.checkpoint.load(checkpoint, steps)
        while self.done < steps:
            losses = self.step()
            if on_step is not None:
                on_step(self.done, losses)
            last = self.done == steps
            stopping = not last and should_stop()
            due = last or stopping or self.done % checkpoint_every == 0
            if checkpoint is not None and due:
                self.checkpoint.save(checkpoint, self.done)
            if stopping:
                return False
        return True


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by instructions of its own, and so is faster than float32."""
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(  # type: ignore[no-untyped-call]
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
