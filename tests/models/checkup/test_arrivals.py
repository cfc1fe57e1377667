"""Findings about the input and the parameters of a call, with or without an output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    convolution,
    every_library,
    noise,
    summary,
    trained,
    two_blocks,
)


@every_library
def test_a_trained_layer_of_zeros_is_dead(library):
    x = noise()
    model = trained(two_blocks(lambda: library.BatchNorm2d(8)), x)
    nn.init.zeros_(model.body[1].weight)
    nn.init.ones_(model.body[1].bias)
    assert summary(check(model, x)) == [("warning", "zero-weight", "body.1")]


@every_library
def test_evaluation_that_depends_on_the_batch(library):
    model = two_blocks(lambda: library.BatchNorm2d(8, track_running_stats=False))
    for mode, severity in ((True, "hint"), (False, "warning")):
        report = check(model.train(mode), noise())
        assert summary(report) == [(severity, "tracking", f"{name}.1") for name in ("stem", "body")]
        assert "in evaluation too a sample's output depends on" in report.findings[0].message


def test_the_momentum_of_switchable_norm_is_the_share_kept():
    model = two_blocks(lambda: momentnorm.SwitchableNorm2d(8, momentum=0.1))
    report = check(model, noise())
    assert summary(report) == [("warning", "momentum", f"{name}.1") for name in ("stem", "body")]
    assert "the last batch makes up 0.9 of the running statistics" in report.findings[0].message
    fresh = check(two_blocks(lambda: momentnorm.SwitchableNorm2d(8)).eval(), noise())
    assert {finding.kind for finding in fresh} == {"never-moved"}


@every_library
@pytest.mark.parametrize(("samples", "severity"), [(1, "warning"), (2, "hint"), (8, None)])
def test_small_batches(samples, severity, library):
    model = two_blocks(lambda: library.BatchNorm2d(8))
    report = check(model, noise(samples, 3, 16, 16))
    expected = [(severity, "batch-size", f"{name}.1") for name in ("stem", "body")]
    assert summary(report) == (expected if severity else [])
    if samples == 1:
        assert "that is InstanceNorm" in report.findings[0].message
    # Evaluation does not use the batch.
    assert check(trained(model, noise()), noise(samples, 3, 16, 16)).ok


def _strided(norm):
    return nn.Sequential(
        convolution(3, 8, stride=4), norm(), nn.ReLU(), convolution(8, 8, stride=4), norm()
    )


@every_library
@pytest.mark.parametrize("mode", [True, False])
def test_planes_of_one_element(mode, library):
    model = _strided(lambda: library.InstanceNorm2d(8)).train(mode)
    report = check(model, noise(2, 3, 12, 9))
    assert summary(report) == [("error", "few-elements", "4")]
    assert isinstance(report.exception, ValueError)
    assert "(2, 8, 1, 1)" in report.findings[0].message
    assert report.findings[0].fix == "an input of (2, 3, 24, 18), 2 times as large, works"
    assert check(model, noise(2, 3, 24, 18)).exception is None


@every_library
def test_the_suggested_size_works(library):
    model = _strided(lambda: library.InstanceNorm2d(8))
    assert check(model, noise(2, 3, 12, 12)).of("few-elements")
    assert summary(check(model, noise(2, 3, 24, 24))) == []
    report = check(model, noise(2, 3, 4, 4))
    assert report.findings[0].layer == "1"  # the first that raises
    assert "(2, 3, 8, 8), 2 times" in report.findings[0].fix


@every_library
def test_no_larger_size_works(library):
    model = nn.Sequential(convolution(3), nn.AdaptiveAvgPool2d(1), library.InstanceNorm2d(8))
    (finding,) = check(model, noise())
    assert "a larger input does not help" in finding.fix


@every_library
def test_planes_of_one_element_with_running_statistics(library):
    norm = library.InstanceNorm2d(3, track_running_stats=True)
    trained(norm, noise())
    (finding,) = check(norm, noise(2, 3, 1, 1))
    assert (finding.severity, finding.kind) == ("hint", "few-elements")
    assert "train() raises" in finding.message


@every_library
def test_two_elements_are_one_and_minus_one(library):
    norm, x = library.InstanceNorm1d(4), noise(2, 4, 1) + torch.tensor([0.0, 1.0])
    torch.testing.assert_close(norm(x).abs(), torch.ones(2, 4, 2), rtol=0, atol=1e-4)
    (finding,) = check(norm, x)
    assert (finding.severity, finding.kind) == ("warning", "few-elements")


@every_library
def test_one_value_per_channel(library):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), library.BatchNorm1d(4))
    (finding,) = check(model, noise(1, 3))
    assert (finding.severity, finding.kind, finding.layer) == ("error", "few-elements", "1")
    assert "two samples" in finding.fix
    assert summary(check(trained(model, noise(64, 3)), noise(1, 3))) == []


@every_library
@pytest.mark.parametrize("samples", [1, 3])
def test_groups_of_one_value(samples, library):
    norm = library.GroupNorm(4, 4)
    (finding,) = check(norm, noise(samples, 4))
    assert (finding.severity, finding.kind, finding.layer) == ("error", "few-elements", "")
    assert ("raises" if samples == 1 else "returns its bias") in finding.message
    assert summary(check(library.GroupNorm(1, 4), noise(samples, 4))) == []


def test_rows_of_one_value():
    (finding,) = check(nn.LayerNorm(1), noise(5, 1))
    assert (finding.severity, finding.kind) == ("error", "few-elements")


def test_relatives_of_one_pixel():
    for norm in (momentnorm.SwitchableNorm2d(4), momentnorm.BatchInstanceNorm2d(4)):
        (finding,) = check(norm, noise(8, 4, 1, 1))
        assert (finding.severity, finding.kind) == ("error", "few-elements")


@every_library
def test_channels_that_only_warn(library):
    model = two_blocks(lambda: library.InstanceNorm2d(8), lambda: library.InstanceNorm2d(5))
    (finding,) = check(model, noise())  # torch's UserWarning would be an error here
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "channels", "body.1")
    assert finding.fix == "num_features=8"
    with pytest.warns(UserWarning, match="does not match num_features"):
        model(noise())


CHANNELS = {
    "InstanceNorm2d": {"num_features": 5, "affine": True},
    "BatchNorm2d": {"num_features": 5},
    "GroupNorm": {"num_groups": 5, "num_channels": 10},
    "LayerNorm": {"normalized_shape": (5,)},
}


@every_library
@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_raise(name, library):
    norm = getattr(library, name)(**CHANNELS[name])
    model = two_blocks(lambda: library.InstanceNorm2d(8), lambda: norm)
    report = check(model, noise())
    assert summary(report) == [("error", "channels", "body.1")]
    assert report.exception is not None
    with pytest.raises(type(report.exception)):
        model(noise())


@every_library
def test_instance_norm_reads_vectors_as_one_sample(library):
    model = nn.Sequential(nn.Linear(3, 8), library.InstanceNorm1d(8))
    (finding,) = check(model, noise(4, 3))
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "channels", "1")
    assert "never (N, C)" in finding.message
    assert "LayerNorm" in finding.fix
