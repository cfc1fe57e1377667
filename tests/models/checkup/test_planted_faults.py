"""check finds each of many planted faults in its layer, and nothing else."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from momentnorm import check
from support.checkup_cases import (
    every_library,
    noise,
    scaled,
    summary,
    trained,
    two_blocks,
)


def _with(attribute, value):
    """Change of an attribute of ``body.1``."""

    def change(model):
        setattr(model.body[1], attribute, value)

    return change


def _statistics(name, change):
    """Change of running statistics of ``body.1``."""
    return lambda model: change(getattr(model.body[1], name))


def _zero_channels(channels):
    """Change that makes these channels of ``body.1``'s input constant."""

    def change(model):
        model.body[0].weight.data[channels] = 0

    return change


BATCH, TRACKED, PLAIN = "BatchNorm2d", "InstanceNorm2d tracked", "InstanceNorm2d"


def _layer(library, name, channels=8, **options):
    if name == TRACKED:
        return library.InstanceNorm2d(channels, track_running_stats=True, **options)
    return getattr(library, name)(channels, **options)


#: Layer, mode, fault, severity, kind, and a pattern that the message or the fix matches.
FAULTS = {
    "tracking switched on, eval": (
        PLAIN,
        "eval",
        _with("track_running_stats", True),
        "error",
        "tracking",
        "with track_running_stats=True",
    ),
    "tracking switched on, train": (
        PLAIN,
        "train",
        _with("track_running_stats", True),
        "warning",
        "tracking",
        "evaluation raises",
    ),
    "tracking switched off, BatchNorm": (
        BATCH,
        "eval",
        _with("track_running_stats", False),
        "warning",
        "tracking",
        "set running_mean and running_var to None",
    ),
    "tracking switched off, InstanceNorm": (
        TRACKED,
        "train",
        _with("track_running_stats", False),
        "hint",
        "tracking",
        "nothing uses them",
    ),
    "never moved, BatchNorm": (
        BATCH,
        "eval",
        lambda model: model.body[1].reset_running_stats(),
        "warning",
        "never-moved",
        "load a checkpoint",
    ),
    "never moved, InstanceNorm": (
        TRACKED,
        "eval",
        lambda model: model.body[1].reset_running_stats(),
        "warning",
        "never-moved",
        "track_running_stats=False, the default",
    ),
    "NaN in running_mean": (
        BATCH,
        "train",
        _statistics("running_mean", lambda mean: mean[2:4].fill_(torch.nan)),
        "warning",
        "running-var",
        r"2 of 8 channels are not \(2, 3\)",
    ),
    "zero in running_var": (
        BATCH,
        "eval",
        _statistics("running_var", lambda var: var[5].zero_()),
        "hint",
        "running-var",
        r"1 of 8 channels \(5\).*up to 316",
    ),
    "statistics of other data, BatchNorm": (
        BATCH,
        "eval",
        _statistics("running_mean", lambda mean: mean.add_(9)),
        "warning",
        "gap",
        r"mean of -\d.* where train\(\) makes 0 and 1",
    ),
    "statistics of other data, InstanceNorm": (
        TRACKED,
        "eval",
        _statistics("running_var", lambda var: var.mul_(1e-3)),
        "warning",
        "gap",
        "the default",
    ),
    "statistics of other data, in training": (
        BATCH,
        "train",
        _statistics("running_var", lambda var: var.mul_(1e-3)),
        "hint",
        "gap",
        "a deviation of 3",
    ),
    "momentum of InstanceNorm": (
        TRACKED,
        "train",
        _with("momentum", None),
        "warning",
        "momentum",
        "None: the running statistics never move",
    ),
    "momentum of 0": (BATCH, "eval", _with("momentum", 0.0), "warning", "momentum", "never move"),
    "momentum of TensorFlow": (
        BATCH,
        "eval",
        _with("momentum", 0.99),
        "warning",
        "momentum",
        "TensorFlow's 0.99 is 0.01",
    ),
    "weight of zeros": (
        BATCH,
        "eval",
        lambda model: nn.init.zeros_(model.body[1].weight),
        "hint",
        "zero-weight",
        "on purpose",
    ),
    "constant channels": (
        BATCH,
        "train",
        _zero_channels([1, 4]),
        "hint",
        "constant",
        "2 of 8 channels are constant.*channels 1, 4",
    ),
    "constant planes": (
        PLAIN,
        "eval",
        _zero_channels(range(5)),
        "warning",
        "constant",
        "40 of 64 planes are constant.*channels 0, 1, 2, 3, 4",
    ),
    "eps outweighs": (
        PLAIN,
        "train",
        scaled(1e-3),
        "warning",
        "eps",
        r"64 of 64 planes.*the output's deviation is 0\.\d+ ",
    ),
    "values beyond float16": (
        PLAIN,
        "train",
        scaled(1e6),
        "hint",
        "overflow",
        "infinite in float16",
    ),
}


@every_library
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_layer(fault, library):
    name, mode, plant, severity, kind, text = FAULTS[fault]
    x = noise()
    model = trained(two_blocks(lambda: _layer(library, name)), x)
    assert summary(check(model.train(mode == "train"), x)) == []
    with torch.no_grad():
        plant(model)
    report = check(model, x)
    (finding,) = report
    assert (finding.severity, finding.kind, finding.layer) == (severity, kind, "body.1")
    assert re.search(text, f"{finding.message} fix: {finding.fix}", re.DOTALL), str(report)
    assert bool(report) == report.ok == (severity == "hint")
    assert report.of(kind) == (finding,)
    assert finding.message.startswith(name.split()[0] + ": ")
