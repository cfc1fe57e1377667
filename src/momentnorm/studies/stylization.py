"""Stylization: losses of the style network with each norm, also at other contrasts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..stylize.artworks import draw as draw_artwork
from ..stylize.command_compare import change_contrast, hold_out, measure_changes
from ..stylize.content import Crops, content_files, generator_of
from ..stylize.features import RandomFeatures
from ..stylize.images import to_tensor
from ..stylize.network import Architecture, Network
from ..stylize.objective import StyleTarget, scaled
from ..stylize.sheet import save_sheet
from ..stylize.trainer import CALIBRATION_BATCH, Losses, losses_of
from ..stylize.trainer import Settings as Training
from ..stylize.trainer import train as train_style
from . import plots
from .layers import KINDS, LABELS, norm_layer, norms_of
from .results import Results, is_above
from .study import Cell, Claim, Judgement, Study
from .tables import Table, overview

#: Parts of one training. The training loss is averaged over each part. The held-out loss is
#: measured at its end.
PARTS = 8

#: Largest relative change of the style loss that counts as "does not depend".
UNSEEN = 0.05

#: Height and width of a picture in the sheets, in pixels.
CELL = 150

Change = Callable[[Tensor], Tensor]


def change_brightness(image: Tensor, offset: float) -> Tensor:
    """Image / 2 + offset. Half the contrast leaves room for offsets 0 to 0.5 without clipping."""
    return 0.5 * image + offset


#: Changes of a photograph. Values in [0, 1] stay there.
CHANGES: dict[str, Change] = {
    "contrast 1": lambda image: image,
    "contrast 0.5": functools.partial(change_contrast, factor=0.5),
    "contrast 0.25": functools.partial(change_contrast, factor=0.25),
    "darker": functools.partial(change_brightness, offset=0.0),
    "brighter": functools.partial(change_brightness, offset=0.5),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    style: str = "mosaic"
    width: int = 16
    blocks: int = 3
    steps: int = 400
    batch: int = 4
    size: int = 96
    style_size: int = 256
    test_size: int = 256
    lr: float = 1e-3

    def training(self, norm: str, seed: int) -> Training:
        names = ("width", "blocks", "steps", "batch", "size", "style_size", "lr")
        known = {name: getattr(self, name) for name in names}
        return Training(norm=norm, seed=seed, **known)


QUICK = Settings(width=8, blocks=1, steps=96, size=32, style_size=64, test_size=144, lr=3e-3)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Style, photographs and loss network that all trainings of one seed share."""

    picture: Tensor
    training_files: list[str]
    photographs: list[Tensor]  # to judge by
    features: RandomFeatures
    target: StyleTarget


@functools.lru_cache(maxsize=1)
def scene(settings: Settings, seed: int) -> Scene:
    """Scene of a seed. Norms share its loss network, so their losses can be compared."""
    training_files, photographs = hold_out(content_files(None), settings.test_size)
    crops = Crops(training_files, settings.size, seed).batch(0, CALIBRATION_BATCH)
    features = RandomFeatures(crops)
    picture = to_tensor(draw_artwork(settings.style))
    target = StyleTarget(features, scaled(picture, settings.style_size))
    return Scene(picture, training_files, photographs, features, target)


def build(architecture: Architecture, layers: str) -> Network:
    """Style network with norms of this kind of layers."""
    network = Network(architecture)
    if layers == "momentnorm":
        return network
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            channels = getattr(child, "num_features", getattr(child, "num_channels", None))
            if channels is not None:  # a norm: only norms have one of these
                setattr(parent, name, norm_layer(architecture.norm, channels, layers))
    return network


def train(
    settings: Settings, norm: str, layers: str, seed: int
) -> tuple[Network, dict[str, float]]:
    """Trained network, in evaluation mode, and its training and held-out losses.

    The held-out loss is the training's loss on squares of the middle of the held-out photographs.
    Its random directions are equal each time.
    """
    world, training = scene(settings, seed), settings.training(norm, seed)
    held_out = torch.stack([_middle(photo, settings.size) for photo in world.photographs])
    history: list[float] = []
    found: dict[str, float] = {}

    def on_step(step: int, losses: Losses, network: Network) -> None:
        history.append(losses["loss"])
        part, rest = divmod(step * PARTS, settings.steps)
        if rest >= PARTS:  # this step ends no part
            return
        found[f"training {part}/{PARTS}"] = sum(history) / len(history)
        history.clear()
        network.eval()
        with torch.no_grad():
            random = generator_of(seed, 0)
            terms = losses_of(network(held_out), held_out, world.target, training, random)
        network.train()
        found[f"held out {part}/{PARTS}"] = terms["loss"].item()

    network = train_style(
        world.picture,
        world.training_files,
        training,
        features=world.features,
        on_step=on_step,
        build=functools.partial(build, layers=layers),
    )
    return network, found


def _middle(image: Tensor, size: int) -> Tensor:
    """Square from the middle of an image, (3, size, size)."""
    height, width = image.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def cells(settings: Settings, layers: str) -> list[Cell]:
    return [{"norm": norm} for norm in norms_of(layers)]


def compute(
    settings: Settings, cell: Cell, layers: str, seed: int, folder: Path
) -> dict[str, float]:
    norm = str(cell["norm"])
    network, found = train(settings, norm, layers, seed)
    world = scene(settings, seed)
    style_image = scaled(world.picture, settings.style_size)
    losses, pictures = measure_changes(
        network, world.features, style_image, world.photographs, list(CHANGES.values())
    )
    found |= {f"style loss, {name}": x for name, x in zip(CHANGES, losses, strict=True)}
    made = dict(zip(CHANGES, pictures, strict=True))
    found["picture moves with contrast"] = _distance(made["contrast 1"], made["contrast 0.25"])
    found["picture moves with brightness"] = _distance(made["darker"], made["brighter"])
    if seed == 0 and layers == "momentnorm":
        row = [(f"{LABELS[norm]}, {name}", pictures[0]) for name, pictures in made.items()]
        photograph = world.photographs[0]
        seen = [(f"photograph, {name}", change(photograph)) for name, change in CHANGES.items()]
        rows = [seen, row] if norm == "none" else [row]
        save_sheet(rows, folder / f"{STUDY.name}-{norm}.jpg", cell=CELL)
    return found


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Mean absolute difference of two rows of pictures."""
    differences = [(a - b).abs().mean() for a, b in zip(some, others, strict=True)]
    return torch.stack(differences).mean().item()


#: Name of the held-out loss at the end of the training.
LAST = f"held out {PARTS}/{PARTS}"


def claims(results: Results) -> Sequence[Claim]:
    others = [norm for norm in LABELS if norm in results.distinct("norm") and norm != "instance"]
    return [
        *(
            Claim(
                f"IN ends with a lower loss on held-out photographs than {_named(norm)}",
                "the mean of the differences, seed by seed, is above their spread; each seed has a "
                "loss network of its own, which judges all norms",
                functools.partial(_instance_learns_better, other=norm),
            )
            for norm in others
        ),
        Claim(
            "IN's style loss does not depend on the photograph's contrast",
            f"at a quarter of the contrast it differs from that at full contrast by at most "
            f"{UNSEEN:.0%}",
            functools.partial(_unseen, low="contrast 1", high="contrast 0.25"),
        ),
        Claim(
            "BN's style loss is higher at a quarter of the photograph's contrast",
            "it is above that at full contrast by more than the sum of the two spreads",
            _batch_sees_contrast,
        ),
        Claim(
            "IN's style loss does not depend on the photograph's brightness",
            f"with the brighter photographs it differs from that with the darker ones by at most "
            f"{UNSEEN:.0%}",
            functools.partial(_unseen, low="darker", high="brighter"),
        ),
        *(
            Claim(
                f"A change of {change} changes IN's pictures less than BN's",
                "the mean absolute difference of the pictures is below BN's by more than the sum "
                "of the two spreads",
                functools.partial(_instance_moves_less, metric=f"picture moves with {change}"),
            )
            for change in ("contrast", "brightness")
        ),
    ]


def _named(norm: str) -> str:
    return "no norm" if norm == "none" else LABELS[norm]


def _instance_learns_better(results: Results, other: str) -> Judgement:
    instance, compared = (results.sample(LAST, norm=norm) for norm in ("instance", other))
    gap = compared - instance
    return Judgement(
        gap.mean > gap.spread, f"IN {instance}; {_named(other)} {compared}; lower by {gap}"
    )


def _instance_moves_less(results: Results, metric: str) -> Judgement:
    instance, batch = (results.sample(metric, norm=norm) for norm in ("instance", "batch"))
    return Judgement(is_above(batch, instance), f"IN {instance}; BN {batch}")


def _unseen(results: Results, low: str, high: str) -> Judgement:
    before = results.sample(f"style loss, {low}", norm="instance")
    after = results.sample(f"style loss, {high}", norm="instance")
    change = after.mean / before.mean - 1
    return Judgement(
        abs(change) <= UNSEEN, f"{low}: {before}; {high}: {after}; change {change:+.1%}"
    )


def _batch_sees_contrast(results: Results) -> Judgement:
    before = results.sample("style loss, contrast 1", norm="batch")
    after = results.sample("style loss, contrast 0.25", norm="batch")
    return Judgement(is_above(after, before), f"contrast 1: {before}; contrast 0.25: {after}")


def tables(results: Results) -> Sequence[Table]:
    shown = {
        LAST: "Loss on held-out photographs, at the end",
        f"training {PARTS}/{PARTS}": "Training loss, mean of the last eighth",
        **{f"style loss, {name}": f"Style loss, {name}" for name in CHANGES},
        "picture moves with contrast": "Change of the picture with contrast",
        "picture moves with brightness": "Change of the picture with brightness",
    }
    return [
        overview("Losses, and changes of the pictures (mean absolute difference)", results, shown)
    ]


def draw(results: Results, folder: Path) -> None:
    """Draw the loss curves, and the style loss against contrast and brightness."""
    curves = [f"{part}/{PARTS}" for part in range(1, PARTS + 1)]
    with plots.figure(folder / f"{STUDY.name}.svg", columns=3) as axes:
        for panel, kind in zip(axes, ("training", "held out"), strict=False):
            plots.metrics(panel, results, [f"{kind} {part}" for part in curves], curves)
            panel.set(xlabel="part of the training", ylabel=f"loss, {kind}")
            panel.set_ylim(bottom=0)
        plots.metrics(axes[2], results, [f"style loss, {name}" for name in CHANGES], list(CHANGES))
        axes[2].set(ylabel="style loss, held out")
        axes[2].tick_params(axis="x", rotation=30)
        axes[2].set_ylim(bottom=0)


STUDY = Study(
    name="stylization",
    title="Stylization",
    question="Which norm stylizes best, and does contrast matter to it?",
    minutes=(3, 48),
    text="""\
Instance Normalization was proposed for stylization, because the contrast of the photograph should
not matter to the picture ([Ulyanov, Vedaldi and Lempitsky 2016](https://arxiv.org/abs/1607.08022)).
The network, losses and photographs are those of `momentnorm stylize compare`. The network is
trained with each norm on ten of scikit-image's photographs; three are held out. One loss network
judges all norms of a seed.

The held-out photographs are also shown at lower contrast about mid-grey, and, at half their
contrast, darker (x / 2) and brighter (x / 2 + 0.5). No value is clipped. The pictures below are of
the first seed.""",
    quick=QUICK,
    full=Settings(),
    kinds=tuple(KINDS),
    cells=cells,
    compute=compute,
    metric=LAST,
    claims=claims,
    tables=tables,
    draw=draw,
)
