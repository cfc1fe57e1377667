"""Switchable: shares of IN, LN and BN that Switchable Normalization learns, by layer and task."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..layers.switchable_norm import SwitchableNorm2d
from . import plots, stylization
from .classify import classifier, train
from .data import DATA
from .results import MissingError, Results, Sample, is_above
from .study import Cell, Claim, Judgement, Study
from .tables import Table, overview

KINDS = ("in", "ln", "bn")
COLOURS = {"in": "tab:blue", "ln": "tab:green", "bn": "tab:red"}
MOMENTS = ("mean", "var")
STYLIZATION = "stylization"
CLASSIFICATION = ("digits", "patches")


@dataclasses.dataclass(frozen=True)
class Settings:
    widths: tuple[int, ...] = (16, 32, 32, 32, 32, 32, 32)
    strides: tuple[int, ...] = (1, 2, 1, 1, 1, 1, 1)
    batch: int = 16
    epochs: int = 20
    lr: float = 0.1
    stylization: stylization.Settings = dataclasses.field(
        default_factory=lambda: stylization.Settings(steps=1200, lr=2e-3)
    )


def cells(settings: Settings, layers: str) -> list[Cell]:
    return [{"task": task} for task in (*CLASSIFICATION, STYLIZATION)]


def compute(
    settings: Settings, cell: Cell, layers: str, seed: int, folder: Path
) -> dict[str, float]:
    task = str(cell["task"])
    model: nn.Module
    if task == STYLIZATION:
        model, losses = stylization.train(settings.stylization, "switchable", layers, seed)
        found = {"loss": losses[stylization.LAST]}
    else:
        data = DATA[task]()
        torch.manual_seed(seed)
        model = classifier(settings.widths, settings.strides, data.classes, "switchable", layers)
        trained = train(
            model, data, batch=settings.batch, epochs=settings.epochs, lr=settings.lr, seed=seed
        )
        found = {"loss": trained.loss, "accuracy": trained.accuracy}
    return found | shares(model)


def shares(model: nn.Module) -> dict[str, float]:
    """Shares by name: ``"mean 1 in"`` is that of IN in the mean of the first layer."""
    layers = [module for module in model.modules() if isinstance(module, SwitchableNorm2d)]
    return {
        f"{moment} {index} {kind}": share
        for index, layer in enumerate(layers, 1)
        for moment, mixture in layer.mixture().items()
        for kind, share in mixture.items()
    }


def depth_of(results: Results, task: str) -> int:
    """Number of Switchable Normalization layers in the task's network."""
    rows = results.where(task=task).rows
    return sum(rows[0].get(name, "") != "" for name in _names("mean", "in", 99)) if rows else 0


def _names(moment: str, kind: str, depth: int) -> list[str]:
    return [f"{moment} {index} {kind}" for index in range(1, depth + 1)]


def share(results: Results, task: str, moment: str, kind: str) -> Sample:
    """Share of a kind, averaged over the task's layers, for each seed.

    Raises:
        MissingError: no finished seeds.
    """
    depth = depth_of(results, task)
    if not depth:
        raise MissingError(f"the shares of {task}: no seeds of at least 2")
    layers = [results.sample(name, task=task).values for name in _names(moment, kind, depth)]
    return Sample(tuple(statistics.fmean(values) for values in zip(*layers, strict=True)))


def claims(results: Results) -> Sequence[Claim]:
    return [
        *(
            Claim(
                f"In stylization SN relies on IN more than in classification of {task} ({moment})",
                "IN's share, averaged over the layers, is above that in classification by more "
                "than the sum of the two spreads",
                functools.partial(_more_instance, task=task, moment=moment),
            )
            for moment in MOMENTS
            for task in CLASSIFICATION
        ),
        *(
            Claim(
                f"In stylization IN has the largest share ({moment})",
                "averaged over the layers, it is above those of LN and BN by more than the sum of "
                "the two spreads",
                functools.partial(
                    _extreme, task=STYLIZATION, moment=moment, kind="in", largest=True
                ),
            )
            for moment in MOMENTS
        ),
        *(
            Claim(
                f"In classification of {task} IN has the smallest share ({moment})",
                "averaged over the layers, it is below those of LN and BN by more than the sum of "
                "the two spreads",
                functools.partial(_extreme, task=task, moment=moment, kind="in", largest=False),
            )
            for task in CLASSIFICATION
            for moment in MOMENTS
        ),
    ]


def _more_instance(results: Results, task: str, moment: str) -> Judgement:
    here = share(results, STYLIZATION, moment, "in")
    there = share(results, task, moment, "in")
    return Judgement(is_above(here, there), f"stylization {here}; {task} {there}")


def _extreme(results: Results, task: str, moment: str, kind: str, largest: bool) -> Judgement:
    found = {name: share(results, task, moment, name) for name in KINDS}
    this = found[kind]
    others = [sample for name, sample in found.items() if name != kind]
    holds = all(is_above(this, x) if largest else is_above(x, this) for x in others)
    return Judgement(holds, "; ".join(f"{name.upper()} {x}" for name, x in found.items()))


def tables(results: Results) -> Sequence[Table]:
    shown = {"loss": "Loss", "accuracy": "Held-out accuracy"}
    return [overview("Losses and accuracies", results, shown, along="task")]


def draw(results: Results, folder: Path) -> None:
    """Draw the shares as stacked bars, means over the seeds, for each layer, task and moment."""
    tasks = [str(task) for task in results.distinct("task")]
    with plots.figure(folder / f"{STUDY.name}.svg", columns=len(tasks), rows=2) as panels:
        for column, task in enumerate(tasks):
            depth = depth_of(results, task)
            for row, moment in enumerate(MOMENTS):
                panel = panels[row * len(tasks) + column]
                bottom = [0.0] * depth
                for kind in KINDS:
                    means = [
                        statistics.fmean(
                            float(cell[name]) for cell in results.where(task=task).rows
                        )
                        for name in _names(moment, kind, depth)
                    ]
                    label = kind.upper()
                    panel.bar(
                        range(1, depth + 1), means, bottom=bottom, color=COLOURS[kind], label=label
                    )
                    bottom = [low + mean for low, mean in zip(bottom, means, strict=True)]
                panel.axhline(1 / 3, color="white", linewidth=0.8, linestyle=":")
                panel.axhline(2 / 3, color="white", linewidth=0.8, linestyle=":")
                panel.set(title=f"{task}: {moment}", xlabel="layer", ylim=(0, 1))
                panel.set_xticks(range(1, depth + 1))


STUDY = Study(
    name="switchable",
    title="Shares of Switchable Normalization",
    question="Which statistics does Switchable Normalization learn to rely on?",
    minutes=(2, 26),
    text="""\
A Switchable Normalization layer mixes the statistics of IN, LN and BN
([Luo et al. 2018](https://arxiv.org/abs/1806.10779)). It learns their shares, three for the mean
and three for the variance. The authors found that the shares differ from task to task, and that
stylization relies on IN. Here the shares are read from trained layers with `layer.mixture()`. Every
share starts at a third, which the dotted lines mark. Classification trains with SGD and stylization
with Adam, so compare which share is the largest, not how far the shares moved.""",
    quick=Settings(
        widths=(16, 32, 32, 32),
        strides=(1, 2, 1, 1),
        epochs=4,
        stylization=dataclasses.replace(stylization.QUICK, blocks=2, steps=200, lr=5e-3),
    ),
    full=Settings(),
    kinds=("momentnorm",),
    cells=cells,
    compute=compute,
    metric="loss",
    claims=claims,
    tables=tables,
    draw=draw,
)
