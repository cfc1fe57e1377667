"""Batch size: the accuracy of small classifiers with each norm, by batch size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import plots
from .classify import classifier, train
from .data import DATA
from .layers import KINDS, LABELS, norms_of
from .results import Results, Sample, Value, is_above
from .study import Cell, Claim, Judgement, Study
from .tables import Table, pivot

#: Largest loss of accuracy that still counts as "hardly degrades".
HARDLY = 0.02


@dataclass(frozen=True)
class Settings:
    data: tuple[str, ...] = ("digits", "patches")
    batches: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    widths: tuple[int, ...] = (16, 32, 32)
    strides: tuple[int, ...] = (1, 2, 1)
    epochs: int = 30
    lr: float = 0.1


def cells(settings: Settings, layers: str) -> list[Cell]:
    return [
        {"data": data, "norm": norm, "batch": batch}
        for data in settings.data
        for norm in norms_of(layers)
        if norm != "none"
        for batch in settings.batches
    ]


def compute(
    settings: Settings, cell: Cell, layers: str, seed: int, folder: Path
) -> dict[str, float]:
    data = DATA[str(cell["data"])]()
    torch.manual_seed(seed)
    model = classifier(settings.widths, settings.strides, data.classes, str(cell["norm"]), layers)
    batch = int(cell["batch"])
    found = train(model, data, batch=batch, epochs=settings.epochs, lr=settings.lr, seed=seed)
    return {"loss": found.loss, "accuracy": found.accuracy}


def claims(results: Results) -> Sequence[Claim]:
    return [claim for data in results.distinct("data") for claim in _claims_of(data)]


def _claims_of(data: Value) -> list[Claim]:
    return [
        Claim(
            f"{data}: BN degrades at small batches",
            "its accuracy at the largest batch is above that at the smallest by more than the sum "
            "of the two spreads",
            functools.partial(_degrades, data=data),
        ),
        *(
            Claim(
                f"{data}: {LABELS[norm]} hardly degrades at small batches",
                f"its mean accuracy falls by at most {HARDLY:g} from the largest batch to the "
                "smallest",
                functools.partial(_hardly, data=data, norm=norm),
            )
            for norm in ("group", "switchable")
        ),
        Claim(
            f"{data}: BN loses more at small batches than GN",
            "from the largest batch to the smallest its accuracy falls further than GN's, by more "
            "than the sum of the two spreads; both falls are taken seed by seed",
            functools.partial(_falls_further, data=data),
        ),
        Claim(
            f"{data}: at the smallest batch GN is better than BN",
            "its accuracy is above BN's by more than the sum of the two spreads",
            functools.partial(_group_above_batch, data=data),
        ),
        Claim(
            f"{data}: IN is the worst for classification",
            "at the largest batch the accuracy of every other norm is above IN's by more than the "
            "sum of the two spreads",
            functools.partial(_instance_worst, data=data),
        ),
    ]


def _ends(results: Results) -> tuple[int, int]:
    """Smallest and largest batch."""
    batches = [int(batch) for batch in results.distinct("batch")]
    return min(batches), max(batches)


def _at_ends(results: Results, data: Value, norm: str) -> tuple[Sample, Sample]:
    """Accuracy at the smallest batch and at the largest."""
    small, large = (
        results.sample("accuracy", data=data, norm=norm, batch=batch) for batch in _ends(results)
    )
    return small, large


def _degrades(results: Results, data: Value) -> Judgement:
    small, large = _ends(results)
    worse, better = _at_ends(results, data, "batch")
    return Judgement(is_above(better, worse), f"batch {large}: {better}; batch {small}: {worse}")


def _hardly(results: Results, data: Value, norm: str) -> Judgement:
    small, large = _ends(results)
    at_small, at_large = _at_ends(results, data, norm)
    return Judgement(
        at_large.mean - at_small.mean <= HARDLY,
        f"batch {large}: {at_large}; batch {small}: {at_small}",
    )


def _falls_further(results: Results, data: Value) -> Judgement:
    falls = []
    for norm in ("batch", "group"):
        small, large = _at_ends(results, data, norm)
        falls.append(large - small)
    batch, group = falls
    return Judgement(is_above(batch, group), f"BN falls by {batch}; GN by {group}")


def _group_above_batch(results: Results, data: Value) -> Judgement:
    small, _ = _ends(results)
    group = results.sample("accuracy", data=data, norm="group", batch=small)
    batch = results.sample("accuracy", data=data, norm="batch", batch=small)
    return Judgement(is_above(group, batch), f"batch {small}: GN {group}; BN {batch}")


def _instance_worst(results: Results, data: Value) -> Judgement:
    _, large = _ends(results)
    found = {
        norm: results.sample("accuracy", data=data, norm=norm, batch=large)
        for norm in map(str, results.distinct("norm"))
    }
    worst = found.pop("instance")
    figures = [f"{LABELS[norm]} {sample}" for norm, sample in found.items()]
    return Judgement(
        all(is_above(sample, worst) for sample in found.values()),
        f"batch {large}: IN {worst}; {', '.join(figures)}",
    )


def tables(results: Results) -> Sequence[Table]:
    return [
        pivot(f"Accuracy on held-out {data}", results.where(data=data), "accuracy", "batch")
        for data in results.distinct("data")
    ]


def draw(results: Results, folder: Path) -> None:
    names = [str(data) for data in results.distinct("data")]
    with plots.figure(folder / f"{STUDY.name}.svg", columns=len(names)) as axes:
        for panel, data in zip(axes, names, strict=True):
            plots.lines(panel, results.where(data=data), "accuracy", along="batch")
            panel.set(title=data, xlabel="batch size", ylabel="held-out accuracy")


STUDY = Study(
    name="batch-size",
    title="Batch size",
    question="Which norms lose accuracy when the batch is small?",
    minutes=(6, 54),
    text="""\
Batch Normalization estimates its statistics from the batch. With fewer samples the estimate is
worse, and training differs more from evaluation. Group Normalization was proposed to avoid this
([Wu and He 2018](https://arxiv.org/abs/1803.08494)). The authors of Switchable Normalization report
that it learns to avoid it ([Luo et al. 2018](https://arxiv.org/abs/1806.10779)). Instance
Normalization removes differences between images, such as contrast, which classification may need.

A network of three convolutions learns two tasks. The first is scikit-learn's handwritten digits;
the last third is held out. The second is to say from which of scikit-image's photographs a grey
patch of 16x16 pixels was taken; every fourth 32-pixel square of each photograph is held out. The
learning rate is proportional to the batch size. The number of epochs is fixed, so small batches
take more steps.""",
    quick=Settings(batches=(2, 8, 32), epochs=3),
    full=Settings(),
    kinds=tuple(KINDS),
    cells=cells,
    compute=compute,
    metric="accuracy",
    claims=claims,
    tables=tables,
    draw=draw,
)
