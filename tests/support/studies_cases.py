"""Studies at sizes that take a second or two, and helpers of their tests."""

from __future__ import annotations

import csv
import dataclasses

from momentnorm.studies import STUDIES, stylization

SMALL_STYLIZATION = stylization.Settings(
    width=4, blocks=1, steps=8, batch=2, size=32, style_size=32, test_size=64
)
#: Largest relative difference of the figures with torch's layers and with ours. Adam multiplies
#: rounding errors, since it divides gradients that should be zero by their own size.
APART = {"stylization": 0.02, "batch-size": 1e-3, "depth": 1e-3}
#: Settings of each study that take a second or two.
TINY = {
    "stylization": SMALL_STYLIZATION,
    "batch-size": dataclasses.replace(
        STUDIES["batch-size"].quick, batches=(64, 128), widths=(4, 4), strides=(2, 2), epochs=1
    ),
    "depth": dataclasses.replace(STUDIES["depth"].quick, depths=(1, 2), width=4, epochs=1),
    "switchable": dataclasses.replace(
        STUDIES["switchable"].quick,
        widths=(4, 4),
        strides=(2, 2),
        batch=128,
        epochs=1,
        stylization=SMALL_STYLIZATION,
    ),
}


def counted(monkeypatch, study):
    """Study with fixed figures in place of trainings, and a list of the cells that it computes."""
    computed = []

    def compute(settings, cell, layers, seed, folder):
        computed.append((*cell.values(), layers, seed))
        return {"loss": 1.0, "accuracy": 0.5 + 0.01 * seed}

    study = dataclasses.replace(study, compute=compute)
    monkeypatch.setitem(STUDIES, study.name, study)
    return study, computed


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
