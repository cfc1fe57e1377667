"""Depth: how deep a plain network can be and still learn, with each norm and without."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import plots
from .classify import classifier, train
from .data import DATA
from .layers import KINDS, LABELS, norms_of
from .results import Results, is_above
from .study import Cell, Claim, Judgement, Study
from .tables import Table, pivot

#: Name of the network without a norm that has He's initialization instead of torch's.
HE = "he"

#: Accuracy above which a network counts as one that learns. Guessing gives 0.1.
LEARNS = 0.5


@dataclass(frozen=True)
class Settings:
    data: str = "digits"
    depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    width: int = 16
    batch: int = 32
    epochs: int = 15
    lr: float = 0.05


def cells(settings: Settings, layers: str) -> list[Cell]:
    return [
        {"norm": norm, "depth": depth}
        for norm in ("none", HE, *(norm for norm in norms_of(layers) if norm != "none"))
        for depth in settings.depths
    ]


def compute(
    settings: Settings, cell: Cell, layers: str, seed: int, folder: Path
) -> dict[str, float]:
    data = DATA[settings.data]()
    norm, depth = str(cell["norm"]), int(cell["depth"])
    torch.manual_seed(seed)
    kind = "none" if norm == HE else norm
    widths = [settings.width] * depth
    model = classifier(widths, [2] + [1] * (depth - 1), data.classes, kind, layers)
    if norm == HE:
        for module in model:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
    found = train(
        model, data, batch=settings.batch, epochs=settings.epochs, lr=settings.lr, seed=seed
    )
    return {"loss": found.loss, "accuracy": found.accuracy}


def claims(results: Results) -> Sequence[Claim]:
    return [
        Claim(
            "Without normalization, a deep network learns worse than a shallow one",
            "at some smaller depth its accuracy is above that at the largest by more than the sum "
            "of the two spreads",
            functools.partial(_falls, norm="none"),
        ),
        *(
            _learns_deeper(norm, "none", f"Deeper networks learn with {LABELS[norm]} than without")
            for norm in LABELS
            if norm not in ("none", HE)
        ),
        _learns_deeper(
            "batch",
            HE,
            "Deeper networks learn with BN than without a norm and with He's initialization",
        ),
    ]


def _learns_deeper(norm: str, other: str, text: str) -> Claim:
    return Claim(
        text,
        "the deepest network that learns is deeper; a network learns if its accuracy is above "
        f"{LEARNS:g} by more than its spread",
        functools.partial(_deeper, norm=norm, other=other),
    )


def _deeper(results: Results, norm: str, other: str) -> Judgement:
    one, another = _reach(results, norm), _reach(results, other)
    return Judgement(one > another, f"{LABELS[norm]} up to {one}; {LABELS[other]} up to {another}")


def _reach(results: Results, norm: str) -> int:
    """Depth of the deepest network that learns, 0 if none does."""
    found = {
        int(depth): results.sample("accuracy", norm=norm, depth=depth)
        for depth in results.distinct("depth")
    }
    learn = [depth for depth, sample in found.items() if sample.mean - sample.spread > LEARNS]
    return max(learn, default=0)


def _falls(results: Results, norm: str) -> Judgement:
    last = max(int(depth) for depth in results.distinct("depth"))
    found = {
        int(depth): results.sample("accuracy", norm=norm, depth=depth)
        for depth in results.distinct("depth")
    }
    best = max((depth for depth in found if depth != last), key=lambda depth: found[depth].mean)
    return Judgement(
        is_above(found[best], found[last]), f"depth {best}: {found[best]}; {last}: {found[last]}"
    )


def tables(results: Results) -> Sequence[Table]:
    return [
        pivot("Held-out accuracy", results, "accuracy", "depth"),
        pivot("Training loss, last epoch", results, "loss", "depth"),
    ]


def draw(results: Results, folder: Path) -> None:
    with plots.figure(folder / f"{STUDY.name}.svg", columns=2) as axes:
        for panel, metric in zip(axes, ("accuracy", "loss"), strict=True):
            plots.lines(panel, results, metric, along="depth")
            panel.set(xlabel="convolutions")
        axes[0].set(ylabel="held-out accuracy")
        axes[1].set(ylabel="training loss, last epoch")


STUDY = Study(
    name="depth",
    title="Depth",
    question="How deep can a plain network be and still learn, by norm?",
    minutes=(2, 12),
    text="""\
Plain networks, without shortcuts, do not learn beyond some depth. Normalization is said to raise
that depth ([Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167)). Here a row of convolutions
learns scikit-learn's digits. All networks have torch's initialization, with which the signal
shrinks from layer to layer if there is no norm. One more network without a norm has the
initialization of [He et al. 2015](https://arxiv.org/abs/1502.01852), which keeps the signal's size.

`momentnorm study depth --activations -o depth.gif` measures the signal and the gradients of such a
network layer by layer.""",
    quick=Settings(depths=(2, 8, 24), epochs=6),
    full=Settings(),
    kinds=tuple(KINDS),
    cells=cells,
    compute=compute,
    metric="accuracy",
    claims=claims,
    tables=tables,
    draw=draw,
)
