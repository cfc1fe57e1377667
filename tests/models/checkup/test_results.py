"""Findings about the values of a call that has ended."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    every_library,
    noise,
    scaled,
    summary,
    trained,
    two_blocks,
)


def _shifted(offset):
    def change(model):
        bias = torch.full((8,), float(offset), dtype=model.body[0].weight.dtype)
        model.body[0].register_forward_hook(lambda module, args, y: y + bias.view(8, 1, 1))

    return change


@every_library
@pytest.mark.parametrize(("samples", "typical"), [(1, True), (64, False)])
def test_a_single_sample_need_not_be_typical(samples, typical, library):
    x = noise(64, 3, 16, 16) * 0.3 + noise(64, 3, 1, 1)
    norm = trained(library.BatchNorm2d(3), x)
    odd = noise(1, 3, 16, 16) * 0.3 + 1.5  # one and a half deviations from the mean
    assert summary(check(norm, odd.expand(samples, -1, -1, -1))) == (
        [] if typical else [("warning", "gap", "")]
    )


@every_library
def test_eps_outweighs_the_variance_of_a_batch(library):
    model = two_blocks(lambda: library.BatchNorm2d(8))
    scaled(1e-3)(model)
    (finding,) = check(model, noise())
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "eps", "body.1")
    assert "8 of 8 channels" in finding.message


@every_library
def test_each_group_is_counted_once(library):
    (finding,) = check(library.GroupNorm(2, 8), noise(3, 8, 4, 4) * 1e-4)
    assert "the variance of 6 of 6 groups" in finding.message


@every_library
def test_torch_loses_digits(library):
    x = noise()
    model = two_blocks(lambda: library.GroupNorm(2, 8))
    _shifted(3e4)(model)
    report = check(model, x)
    if library is momentnorm:
        assert summary(report) == []
        return
    (finding,) = report
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "digits", "body.1")
    # The message quotes the measured error.
    arrived = []
    model.body[1].register_forward_pre_hook(lambda module, args: arrived.append(args[0]))
    model(x)
    exact = nn.functional.group_norm(arrived[0].double(), 2)
    error = (model.body[1](arrived[0]) - exact).abs().max().item()
    (said,) = re.findall(r"errs by up to (\S+) deviations", finding.message)
    assert float(said) == pytest.approx(error, rel=0.05)
    assert "momentnorm.GroupNorm" in finding.fix


@every_library
def test_constant_up_to_rounding(library):
    x = torch.full((1, 2, 8, 8), 1000.0)
    x[0, 0] += noise(8, 8)
    x[0, 1, :, ::2] = 1000.00006  # the next float
    report = check(library.InstanceNorm2d(2), x)
    assert not report.of("eps")
    (finding,) = report.of("constant")
    assert "1 of 2 planes are constant" in finding.message
    assert "channels 1" in finding.message


@every_library
@pytest.mark.parametrize(("dtype", "offset"), [(torch.bfloat16, 40), (torch.float16, 200)])
def test_digits_that_the_dtype_has_lost(dtype, offset, library):
    model = two_blocks(lambda: library.InstanceNorm2d(8)).to(dtype)
    assert summary(check(model, noise().to(dtype))) == []
    _shifted(offset)(model)
    (finding,) = check(model, noise().to(dtype))
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "digits", "body.1")
    assert "lost before this layer" in finding.message


@every_library
def test_near_the_largest_float16(library):
    norm = library.InstanceNorm2d(3).half()
    (finding,) = check(norm, noise().half() * 6000)
    assert (finding.severity, finding.kind) == ("warning", "overflow")


class _Log(nn.Module):
    def forward(self, x):
        return x.log()


@every_library
@pytest.mark.parametrize("training", [True, False])
def test_the_first_nan_and_its_origin(training, library):
    x = noise()
    model = trained(two_blocks(lambda: library.BatchNorm2d(8)), x).train(training)
    model.body.insert(0, _Log())  # the logarithm of zeros that ReLU made
    (finding,) = check(model, x)
    assert (finding.severity, finding.kind, finding.layer) == ("error", "non-finite", "body.2")
    assert "first seen in the output of 'body.0' (_Log)" in finding.message
    assert ("statistics stay NaN" in finding.message) is training
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_nan_of_the_input_or_of_no_layer():
    x = noise()
    x[0, 0, 0, 0] = torch.nan
    model = two_blocks(lambda: nn.InstanceNorm2d(8))
    (finding,) = check(model, x)
    assert finding.layer == "stem.1"
    assert "the input of the model" in finding.message

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool2d(2)
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x):
            return self.norm(self.pool(x / 0))

    (finding,) = check(Between(), noise())
    assert "between its layers" in finding.message


@every_library
def test_nan_made_by_the_layer(library):
    x = noise()
    model = trained(two_blocks(lambda: library.BatchNorm2d(8)), x)
    model.body[1].running_var.fill_(-1)
    found = summary(check(model, x))
    assert ("error", "running-var", "body.1") in found
    assert ("error", "non-finite", "body.1") in found
    assert len(found) == 2


@every_library
def test_an_empty_batch(library):
    norm = library.InstanceNorm2d(3, track_running_stats=True)
    report = check(norm, noise(0, 3, 4, 4))
    if library is momentnorm:
        assert summary(report) == []
    else:  # torch writes NaN into its buffers
        assert summary(report) == [("error", "non-finite", "")]
        assert "made the running statistics NaN" in report.findings[0].message
    assert norm.running_mean.isfinite().all()


@every_library
@pytest.mark.parametrize("dimensions", [2, 3])
def test_layout(dimensions, library):
    memory_format = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    norm = getattr(library, f"InstanceNorm{dimensions}d")(8)
    x = noise(4, 8, *[6] * dimensions).to(memory_format=memory_format)
    assert summary(check(norm, x.contiguous())) == []
    report = check(norm, x)
    if library is momentnorm:
        assert summary(report) == []
    else:
        assert summary(report) == [("warning", "layout", "")]
        assert f"{2 * x.numel() * 4 / 1e6:.3g} MB" in report.findings[0].message
        assert f"momentnorm.InstanceNorm{dimensions}d" in report.findings[0].fix


def test_a_layer_that_overwrites_its_input():
    model = two_blocks(lambda: momentnorm.InstanceNorm2d(8, inplace=True))
    assert summary(check(model, noise())) == []
    scaled(1e-3)(model)
    assert summary(check(model, noise())) == [("warning", "eps", "body.1")]
