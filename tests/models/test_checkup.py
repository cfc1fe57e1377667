"""``momentnorm.check`` finds each planted fault in its layer, and nothing in healthy networks."""

from __future__ import annotations

import re
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from momentnorm.models.checkup import KINDS, Finding, Report

LIBRARIES = {"torch": nn, "momentnorm": momentnorm}
every_library = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)


def _conv(inputs=8, outputs=8, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options)


def _net(norm, second=None):
    """Two blocks of convolution, normalization and ReLU; the second's layer is ``body.1``."""
    stem = nn.Sequential(_conv(3), norm(), nn.ReLU())
    body = nn.Sequential(_conv(), (second or norm)(), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=stem, body=body, head=nn.Conv2d(8, 2, 1)))


def _trained(model, *inputs):
    """The model, its running statistics those of these inputs."""
    model.train()
    with torch.no_grad():
        for _ in range(60):
            model(*inputs)
    return model.eval()


def _x(*shape):
    return torch.randn(shape or (8, 3, 16, 16))


def _found(report):
    return [(finding.severity, finding.kind, finding.layer) for finding in report]


# Healthy networks


class _Residual(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            norm(channels),
        )

    def forward(self, x):
        return x + self.branch(x)


def _generator(library):
    norm = library.InstanceNorm2d
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 8, 7, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        norm(16),
        nn.ReLU(inplace=True),
        *(_Residual(16, norm) for _ in range(3)),
        nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 3, 7, padding=3),
        nn.Tanh(),
    ), (torch.rand(1, 3, 32, 32) * 2 - 1,)


def _resnet(library):
    norm = library.BatchNorm2d
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        norm(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *(_Residual(16, norm) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32, bias=False),
        library.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    x = torch.randn(16, 3, 32, 32) * torch.tensor([0.5, 1, 2]).view(1, 3, 1, 1)
    return _trained(model, x), (x,)


class _UNet(nn.Module):
    def __init__(self, library):
        super().__init__()

        def stage(inputs, outputs, stride):
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
                library.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
                nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
                library.GroupNorm(2, outputs),
                nn.LeakyReLU(0.01, inplace=True),
            )

        self.down = nn.ModuleList([stage(1, 4, 1), stage(4, 8, 2), stage(8, 16, 2)])
        self.up = nn.ModuleList([stage(24, 8, 1), stage(12, 4, 1)])
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, batch):
        skips = []
        x = batch["image"]
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = stage(torch.cat((x, skips.pop()), 1))
        return {"segmentation": (self.head(x), x)}


def _unet(library):
    return _UNet(library), ({"image": torch.randn(2, 1, 16, 16, 16)},)


def _transformer(library):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    embed = nn.Sequential(nn.Embedding(50, 32), library.LayerNorm(32))
    encoder = nn.TransformerEncoder(layer, 2, norm=library.RMSNorm(32))
    return nn.Sequential(embed, encoder), (torch.randint(50, (3, 12)),)


NETWORKS = {f.__name__[1:]: f for f in (_generator, _resnet, _unet, _transformer)}


@every_library
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_healthy_networks_have_no_findings(network, training, library):
    model, inputs = NETWORKS[network](library)
    report = check(model.train(training), *inputs)
    assert _found(report) == [], str(report)
    assert report.calls == report.layers > 3
    assert report.training is training
    assert report.ok
    assert report


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "norm",
    [momentnorm.SwitchableNorm2d, momentnorm.BatchInstanceNorm2d, momentnorm.IBN],
)
def test_healthy_relatives_have_no_findings(norm, training):
    x = _x()
    model = _trained(_net(lambda: norm(8)), x).train(training)
    report = check(model, x)
    assert _found(report) == [], str(report)
    assert report.calls == (4 if norm is momentnorm.IBN else 2)


def test_the_layers_of_a_transformer_with_padding_are_called():
    # Otherwise torch leaves them out, and packs the tokens that are no padding.
    model, _ = _transformer(nn)
    encoder = model[1].eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    report = check(encoder, _x(2, 5, 32), src_key_padding_mask=padding)
    assert _found(report) == []
    assert report.calls == report.layers == 5


# One fault each, in body.1


def _with(attribute, value):
    """A change of body.1."""

    def change(model):
        setattr(model.body[1], attribute, value)

    return change


def _statistics(name, change):
    return lambda model: change(getattr(model.body[1], name))


def _scaled(factor):
    """What arrives at body.1 is this times as large."""

    def change(model):
        model.body[0].weight.data *= factor

    return change


def _shifted(offset):
    def change(model):
        bias = torch.full((8,), float(offset), dtype=model.body[0].weight.dtype)
        model.body[0].register_forward_hook(lambda module, args, y: y + bias.view(8, 1, 1))

    return change


def _zero_channels(channels):
    def change(model):
        model.body[0].weight.data[channels] = 0

    return change


def _no_change(model):
    pass


BATCH, TRACKED, PLAIN = "BatchNorm2d", "InstanceNorm2d tracked", "InstanceNorm2d"


def _layer(library, name, channels=8, **options):
    if name == TRACKED:
        return library.InstanceNorm2d(channels, track_running_stats=True, **options)
    return getattr(library, name)(channels, **options)


#: (layer, mode, fault, severity, kind, what the message or the fix says)
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
        _scaled(1e-3),
        "warning",
        "eps",
        r"64 of 64 planes.*the output's deviation is 0\.\d+ ",
    ),
    "values beyond float16": (
        PLAIN,
        "train",
        _scaled(1e6),
        "hint",
        "overflow",
        "infinite in float16",
    ),
}


@every_library
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_layer(fault, library):
    name, mode, plant, severity, kind, text = FAULTS[fault]
    x = _x()
    model = _trained(_net(lambda: _layer(library, name)), x)
    assert _found(check(model.train(mode == "train"), x)) == []
    with torch.no_grad():
        plant(model)
    report = check(model, x)
    (finding,) = report
    assert (finding.severity, finding.kind, finding.layer) == (severity, kind, "body.1")
    assert re.search(text, f"{finding.message} fix: {finding.fix}", re.DOTALL), str(report)
    assert bool(report) == report.ok == (severity == "hint")
    assert report.of(kind) == (finding,)
    assert finding.message.startswith(name.split()[0] + ": ")


@every_library
def test_a_trained_layer_of_zeros_is_dead(library):
    x = _x()
    model = _trained(_net(lambda: library.BatchNorm2d(8)), x)
    nn.init.zeros_(model.body[1].weight)
    nn.init.ones_(model.body[1].bias)
    assert _found(check(model, x)) == [("warning", "zero-weight", "body.1")]


@every_library
def test_evaluation_that_depends_on_the_batch(library):
    model = _net(lambda: library.BatchNorm2d(8, track_running_stats=False))
    for mode, severity in ((True, "hint"), (False, "warning")):
        report = check(model.train(mode), _x())
        assert _found(report) == [(severity, "tracking", f"{name}.1") for name in ("stem", "body")]
        assert "depends on the rest of its batch" in report.findings[0].message


def test_a_momentum_of_switchable_norm_is_what_is_kept():
    model = _net(lambda: momentnorm.SwitchableNorm2d(8, momentum=0.1))
    report = check(model, _x())
    assert _found(report) == [("warning", "momentum", f"{name}.1") for name in ("stem", "body")]
    assert "the last batch makes up 0.9 of the running statistics" in report.findings[0].message
    fresh = check(_net(lambda: momentnorm.SwitchableNorm2d(8)).eval(), _x())
    assert {finding.kind for finding in fresh} == {"never-moved"}


@every_library
@pytest.mark.parametrize(("samples", "severity"), [(1, "warning"), (2, "hint"), (8, None)])
def test_small_batches(samples, severity, library):
    model = _net(lambda: library.BatchNorm2d(8))
    report = check(model, _x(samples, 3, 16, 16))
    expected = [(severity, "batch-size", f"{name}.1") for name in ("stem", "body")]
    assert _found(report) == (expected if severity else [])
    if samples == 1:
        assert "that is InstanceNorm" in report.findings[0].message
    assert check(_trained(model, _x()), _x(samples, 3, 16, 16)).ok  # of no matter in evaluation


@every_library
@pytest.mark.parametrize(("samples", "typical"), [(1, True), (64, False)])
def test_a_single_sample_need_not_be_typical(samples, typical, library):
    x = _x(64, 3, 16, 16) * 0.3 + _x(64, 3, 1, 1)
    norm = _trained(library.BatchNorm2d(3), x)
    odd = _x(1, 3, 16, 16) * 0.3 + 1.5  # one and a half deviations from the mean of all
    assert _found(check(norm, odd.expand(samples, -1, -1, -1))) == (
        [] if typical else [("warning", "gap", "")]
    )


@every_library
def test_eps_outweighs_the_variance_of_a_batch(library):
    model = _net(lambda: library.BatchNorm2d(8))
    _scaled(1e-3)(model)
    (finding,) = check(model, _x())
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "eps", "body.1")
    assert "8 of 8 channels" in finding.message


@every_library
def test_each_group_is_counted_once(library):
    (finding,) = check(library.GroupNorm(2, 8), _x(3, 8, 4, 4) * 1e-4)
    assert "the variance of 6 of 6 groups" in finding.message


# Too few elements


def _strided(norm):
    return nn.Sequential(_conv(3, 8, stride=4), norm(), nn.ReLU(), _conv(8, 8, stride=4), norm())


@every_library
@pytest.mark.parametrize("mode", [True, False])
def test_planes_of_one_element(mode, library):
    model = _strided(lambda: library.InstanceNorm2d(8)).train(mode)
    report = check(model, _x(2, 3, 12, 9))
    assert _found(report) == [("error", "few-elements", "4")]
    assert isinstance(report.exception, ValueError)
    assert "(2, 8, 1, 1)" in report.findings[0].message
    assert report.findings[0].fix == "an input of (2, 3, 24, 18), 2 times as large, works"
    assert check(model, _x(2, 3, 24, 18)).exception is None


@every_library
def test_the_size_that_would_do_does(library):
    model = _strided(lambda: library.InstanceNorm2d(8))
    assert check(model, _x(2, 3, 12, 12)).of("few-elements")
    assert _found(check(model, _x(2, 3, 24, 24))) == []
    report = check(model, _x(2, 3, 4, 4))
    assert report.findings[0].layer == "1"  # the first that raises
    assert "(2, 3, 8, 8), 2 times" in report.findings[0].fix


@every_library
def test_no_size_would_do(library):
    model = nn.Sequential(_conv(3), nn.AdaptiveAvgPool2d(1), library.InstanceNorm2d(8))
    (finding,) = check(model, _x())
    assert "a larger input does not help" in finding.fix


@every_library
def test_planes_of_one_element_with_running_statistics(library):
    norm = library.InstanceNorm2d(3, track_running_stats=True)
    _trained(norm, _x())
    (finding,) = check(norm, _x(2, 3, 1, 1))
    assert (finding.severity, finding.kind) == ("hint", "few-elements")
    assert "train() raises" in finding.message


@every_library
def test_two_elements_are_one_and_minus_one(library):
    norm, x = library.InstanceNorm1d(4), _x(2, 4, 1) + torch.tensor([0.0, 1.0])
    torch.testing.assert_close(norm(x).abs(), torch.ones(2, 4, 2), rtol=0, atol=1e-4)
    (finding,) = check(norm, x)
    assert (finding.severity, finding.kind) == ("warning", "few-elements")


@every_library
def test_one_value_per_channel(library):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), library.BatchNorm1d(4))
    (finding,) = check(model, _x(1, 3))
    assert (finding.severity, finding.kind, finding.layer) == ("error", "few-elements", "1")
    assert "two samples" in finding.fix
    assert _found(check(_trained(model, _x(64, 3)), _x(1, 3))) == []


@every_library
@pytest.mark.parametrize("samples", [1, 3])
def test_groups_of_one_value(samples, library):
    norm = library.GroupNorm(4, 4)
    (finding,) = check(norm, _x(samples, 4))
    assert (finding.severity, finding.kind, finding.layer) == ("error", "few-elements", "")
    assert ("raises" if samples == 1 else "returns its bias") in finding.message
    assert _found(check(library.GroupNorm(1, 4), _x(samples, 4))) == []


def test_rows_of_one_value():
    (finding,) = check(nn.LayerNorm(1), _x(5, 1))
    assert (finding.severity, finding.kind) == ("error", "few-elements")


def test_relatives_of_one_pixel():
    for norm in (momentnorm.SwitchableNorm2d(4), momentnorm.BatchInstanceNorm2d(4)):
        (finding,) = check(norm, _x(8, 4, 1, 1))
        assert (finding.severity, finding.kind) == ("error", "few-elements")


# Channels


@every_library
def test_channels_that_only_warn(library):
    model = _net(lambda: library.InstanceNorm2d(8), lambda: library.InstanceNorm2d(5))
    (finding,) = check(model, _x())  # and torch's UserWarning would be an error here
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "channels", "body.1")
    assert finding.fix == "num_features=8"
    with pytest.warns(UserWarning, match="does not match num_features"):
        model(_x())


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
    model = _net(lambda: library.InstanceNorm2d(8), lambda: norm)
    report = check(model, _x())
    assert _found(report) == [("error", "channels", "body.1")]
    assert report.exception is not None
    with pytest.raises(type(report.exception)):
        model(_x())


@every_library
def test_vectors_are_no_batch_to_instance_norm(library):
    model = nn.Sequential(nn.Linear(3, 8), library.InstanceNorm1d(8))
    (finding,) = check(model, _x(4, 3))
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "channels", "1")
    assert "never (N, C)" in finding.message
    assert "LayerNorm" in finding.fix


# Numbers


@every_library
def test_torch_loses_digits(library):
    x = _x()
    model = _net(lambda: library.GroupNorm(2, 8))
    _shifted(3e4)(model)
    report = check(model, x)
    if library is momentnorm:
        assert _found(report) == []
        return
    (finding,) = report
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "digits", "body.1")
    # what it says is the error
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
    x[0, 0] += _x(8, 8)
    x[0, 1, :, ::2] = 1000.00006  # the next float
    report = check(library.InstanceNorm2d(2), x)
    assert not report.of("eps")
    (finding,) = report.of("constant")
    assert "1 of 2 planes are constant" in finding.message
    assert "channels 1" in finding.message


@every_library
@pytest.mark.parametrize(("dtype", "offset"), [(torch.bfloat16, 40), (torch.float16, 200)])
def test_digits_that_the_dtype_has_lost(dtype, offset, library):
    model = _net(lambda: library.InstanceNorm2d(8)).to(dtype)
    assert _found(check(model, _x().to(dtype))) == []
    _shifted(offset)(model)
    (finding,) = check(model, _x().to(dtype))
    assert (finding.severity, finding.kind, finding.layer) == ("warning", "digits", "body.1")
    assert "lost before this layer" in finding.message


@every_library
def test_near_the_end_of_float16(library):
    norm = library.InstanceNorm2d(3).half()
    (finding,) = check(norm, _x().half() * 6000)
    assert (finding.severity, finding.kind) == ("warning", "overflow")


class _Log(nn.Module):
    def forward(self, x):
        return x.log()


@every_library
@pytest.mark.parametrize("training", [True, False])
def test_the_first_nan_and_where_it_comes_from(training, library):
    x = _x()
    model = _trained(_net(lambda: library.BatchNorm2d(8)), x).train(training)
    model.body.insert(0, _Log())  # of what ReLU has set to 0
    (finding,) = check(model, x)
    assert (finding.severity, finding.kind, finding.layer) == ("error", "non-finite", "body.2")
    assert "first seen in the output of 'body.0' (_Log)" in finding.message
    assert ("statistics stay NaN" in finding.message) is training
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_nan_of_the_input_or_of_no_layer():
    x = _x()
    x[0, 0, 0, 0] = torch.nan
    model = _net(lambda: nn.InstanceNorm2d(8))
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

    (finding,) = check(Between(), _x())
    assert "between its layers" in finding.message


@every_library
def test_nan_made_by_the_layer(library):
    x = _x()
    model = _trained(_net(lambda: library.BatchNorm2d(8)), x)
    model.body[1].running_var.fill_(-1)
    found = _found(check(model, x))
    assert ("error", "running-var", "body.1") in found
    assert ("error", "non-finite", "body.1") in found
    assert len(found) == 2


@every_library
def test_an_empty_batch(library):
    norm = library.InstanceNorm2d(3, track_running_stats=True)
    report = check(norm, _x(0, 3, 4, 4))
    if library is momentnorm:
        assert _found(report) == []
    else:  # torch writes NaN into its buffers
        assert _found(report) == [("error", "non-finite", "")]
        assert "made the running statistics NaN" in report.findings[0].message
    assert norm.running_mean.isfinite().all()


# Memory, and the rest of the model


@every_library
@pytest.mark.parametrize("dimensions", [2, 3])
def test_layout(dimensions, library):
    memory_format = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    norm = getattr(library, f"InstanceNorm{dimensions}d")(8)
    x = _x(4, 8, *[6] * dimensions).to(memory_format=memory_format)
    assert _found(check(norm, x.contiguous())) == []
    report = check(norm, x)
    if library is momentnorm:
        assert _found(report) == []
    else:
        assert _found(report) == [("warning", "layout", "")]
        assert f"{2 * x.numel() * 4 / 1e6:.3g} MB" in report.findings[0].message
        assert f"momentnorm.InstanceNorm{dimensions}d" in report.findings[0].fix


@every_library
@pytest.mark.parametrize(
    ("layer", "norm", "wasted"),
    [
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.InstanceNorm2d(8), True),
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.BatchNorm2d(8), True),
        (lambda: nn.ConvTranspose2d(3, 8, 3), lambda library: library.GroupNorm(8, 8), True),
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.GroupNorm(2, 8), False),
        (lambda: nn.Conv2d(3, 8, 3, bias=False), lambda library: library.BatchNorm2d(8), False),
    ],
)
def test_a_bias_that_is_taken_away(layer, norm, wasted, library):
    model = nn.Sequential(nn.Sequential(layer(), norm(library)), nn.ReLU())
    report = check(model, _x())
    assert _found(report) == ([("hint", "wasted-bias", "0.0")] if wasted else [])
    if wasted:
        assert "8 parameters" in report.findings[0].message
        x = _x()
        before = model(x)
        model[0][0].bias.data.normal_()
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_an_accelerated_model_is_judged_alike():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    before = _found(check(model, _x()))
    momentnorm.accelerate(model)
    assert _found(check(model, _x())) == before == [("hint", "wasted-bias", "0")]


def test_a_bias_of_other_channels_is_not_taken_away():
    linear = nn.Linear(3, 8)
    assert check(nn.Sequential(linear, nn.BatchNorm1d(8)), _x(16, 3)).of("wasted-bias")
    # (N, L, C): the channels of the norm are the places of the layer
    assert not check(nn.Sequential(linear, nn.BatchNorm1d(5)), _x(16, 5, 3)).of("wasted-bias")

    norm = nn.BatchNorm2d(8)  # in two places
    model = nn.Sequential(_conv(3), norm, nn.Conv2d(8, 8, 3), norm)
    assert _found(check(model, _x())) == [("hint", "wasted-bias", "2")]

    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + self[0](x)

    assert _found(check(Twice(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), _x())) == []


@every_library
def test_a_layer_that_is_not_called(library):
    model = _net(lambda: library.InstanceNorm2d(8))
    model.register_module("spare", library.InstanceNorm2d(8))
    model.forward = lambda x: model.head(model.body(model.stem(x)))
    assert _found(check(model, _x())) == [("hint", "unused", "spare")]


@every_library
def test_a_shared_layer_is_one_finding(library):
    norm = library.InstanceNorm2d(8)
    model = _net(lambda: norm)
    _scaled(1e-3)(model)
    report = check(model, _x())
    assert (report.layers, report.calls) == (1, 2)
    assert _found(report) == [("warning", "eps", "stem.1")]
    assert "(in 1 of 2 calls)" in report.findings[0].message


# What is not a finding of a normalization layer


def test_other_exceptions_are_named():
    model = _net(lambda: nn.InstanceNorm2d(8))
    model.head = nn.Conv2d(9, 2, 1)
    report = check(model, _x())
    assert _found(report) == [("error", "exception", "head")]
    assert isinstance(report.exception, RuntimeError)
    with pytest.raises(RuntimeError, match=r"\[exception\] head: Conv2d raised") as raised:
        report.raise_if_errors()
    assert raised.value.__cause__ is report.exception
    check(nn.InstanceNorm2d(3), _x()).raise_if_errors()


@every_library
def test_an_exception_of_a_layer_that_no_rule_knows(library):
    (finding,) = check(library.InstanceNorm2d(3), _x(3))
    assert (finding.severity, finding.kind) == ("error", "exception")
    assert "for an input of (3,), torch.float32 on cpu, it raised ValueError" in finding.message
    (finding,) = check(library.BatchNorm2d(3), _x().double())
    assert "its parameters are torch.float32 on cpu" in finding.fix


def test_an_exception_of_the_model_itself():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("nothing")

    report = check(Broken(), _x())
    assert _found(report) == [("error", "exception", "")]
    assert "(the model): Broken raised KeyError" in str(report)


def test_what_cannot_be_checked():
    with pytest.raises(TypeError, match="not function"):
        check(_x, _x())
    with pytest.raises(ValueError, match=r"layer '0', LazyInstanceNorm2d.*run the model once"):
        check(nn.Sequential(nn.LazyInstanceNorm2d(affine=True)), _x())


@pytest.mark.filterwarnings("ignore")
def test_a_script_cannot_be_checked():
    with pytest.raises(TypeError, match="TorchScript"):
        check(torch.jit.trace(nn.InstanceNorm2d(3), _x()), _x())


TRACK = {"track_running_stats": True}
LAYERS = {
    "InstanceNorm": ({}, {"affine": True}, TRACK, {"affine": True, **TRACK}),
    "BatchNorm": ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}),
}
SHAPES = """; 4; 4 4; 1 4; 2 4; 2 4 1; 2 4 2; 2 4 4; 4 1 1; 2 4 1 1; 2 4 2 1; 2 4 4 4; 1 4 4 4;
    2 6 4 4; 0 4 4 4; 2 0 4 4; 2 4 0 4; 2 4 1 1 1; 2 4 4 4 4"""


def _layers(library):
    for name, options in LAYERS.items():
        for dimensions in (1, 2, 3):
            for option in options:
                yield getattr(library, f"{name}{dimensions}d")(4, **option)
    yield from (library.GroupNorm(groups, 4) for groups in (1, 2, 4))
    yield from (library.LayerNorm(4), library.LayerNorm((4, 4)), library.RMSNorm(4))
    if library is momentnorm:
        yield from (momentnorm.SwitchableNorm1d(4), momentnorm.SwitchableNorm2d(4))
        yield from (momentnorm.BatchInstanceNorm2d(4), momentnorm.IBN(4))


@pytest.mark.filterwarnings("ignore")  # torch's, of shapes that it takes for another
@every_library
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_layer_that_raises_is_an_error_and_no_other_is(dtype, training, library):
    for layer in _layers(library):
        layer.train(training)
        for shape in SHAPES.split(";"):
            x = torch.randn([int(size) for size in shape.split()]).to(dtype)
            report = check(layer, x)
            raised = None
            try:
                with torch.no_grad():
                    layer(x)
            except Exception as error:
                raised = error
            assert type(report.exception) is type(raised), (layer, shape)
            kinds = {finding.kind for finding in report if finding.severity == "error"}
            if raised is not None:
                assert kinds, (layer, shape)
            elif x.numel():  # groups and rows of one value do not raise
                assert kinds <= {"few-elements"}, (layer, shape)


# Nothing is disturbed


class _Careless(nn.Module):
    """A model that changes all that can be changed."""

    def __init__(self, library, fails):
        super().__init__()
        self.norm = library.BatchNorm2d(3)
        self.tracked = library.InstanceNorm2d(3, track_running_stats=True)
        self.gated = momentnorm.BatchInstanceNorm2d(3)
        self.gated.gate.data.fill_(2)
        self.register_buffer("steps", torch.zeros(1))
        self.fails = fails

    def forward(self, x):
        x.mul_(2)
        self.steps += 1
        self.steps = self.steps * 2
        self.new = x
        x = self.norm(x) + torch.randn_like(x)
        x = self.gated(self.tracked(x))
        self.eval()
        if self.fails:
            raise RuntimeError("on purpose")
        return x


@every_library
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_as_it_was(fails, library):
    model, x = _Careless(library, fails), _x()
    model.norm.eval()
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    before = {name: (tensor, tensor.clone(), tensor._version) for name, tensor in tensors.items()}
    input_before, random = x.clone(), torch.get_rng_state()
    with torch.enable_grad():
        report = check(model, x)
        assert torch.is_grad_enabled()
    assert bool(report.of("exception")) is fails
    after = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    assert list(after) == list(before)
    for name, (tensor, value, version) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, value), name
        assert tensor._version == version, name
    assert torch.equal(x, input_before)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.norm.training, model.tracked.training) == (True, False, True)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_keyboard_interrupt_passes_and_nothing_is_disturbed():
    norm = nn.BatchNorm2d(3)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = norm.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        check(norm, _x())
    assert norm.num_batches_tracked == 0
    assert list(norm._forward_hooks) == [handle.id]


# Models of other kinds


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when the compiler loads
def test_compiled_models_are_looked_into():
    model = _net(lambda: nn.InstanceNorm2d(8))
    _scaled(1e-3)(model)
    expected = [("warning", "eps", "body.1")]
    assert _found(check(torch.compile(model), _x())) == expected
    compiled = []
    backend = lambda graph, _: compiled.append(graph) or graph  # noqa: E731
    model.body = torch.compile(model.body, backend=backend)
    assert _found(check(model, _x())) == expected
    model.compile(backend=backend)
    assert _found(check(model, _x())) == expected
    assert not compiled
    assert _found(check(nn.DataParallel(model), _x())) == expected


def test_keywords_and_outputs_of_any_kind():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, pair, *, scale):
            image, _ = pair
            return {"y": [self.norm(input=image * scale)]}

    assert _found(check(Keywords(), (_x(), None), scale=1.0)) == []
    assert _found(check(Keywords(), (_x(), None), scale=1e-4)) == [("warning", "eps", "norm")]


def test_a_layer_that_writes_over_its_input():
    model = _net(lambda: momentnorm.InstanceNorm2d(8, inplace=True))
    assert _found(check(model, _x())) == []
    _scaled(1e-3)(model)
    assert _found(check(model, _x())) == [("warning", "eps", "body.1")]


def test_a_layer_norm_of_others_is_left_alone():
    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    assert _found(check(_net(lambda: ChannelsFirst(8)), _x())) == []
    # the rows of a LayerNorm proper would be constant
    assert _found(check(ChannelsFirst(8), _x(2, 8, 8, 1).expand(2, 8, 8, 8))) == []


# The report


def test_the_report_can_be_read():
    model = _net(lambda: nn.BatchNorm2d(8)).eval()
    nn.init.zeros_(model.body[1].weight)
    report = check(model, _x())
    assert str(report) == (
        "2 normalization layers, called 2 times in eval mode: 0 errors, 2 warnings, 1 hint\n"
        "\n"
        "warning [never-moved] stem.1: BatchNorm2d: evaluation uses the running statistics, but "
        "they still have their initial values: the layer normalizes nothing\n"
        "    also in body.1\n"
        "    fix: load a checkpoint that has them, or run training batches in train() first\n"
        "\n"
        "hint [zero-weight] body.1: BatchNorm2d: the weight is 0 in every channel, so the output "
        "is the bias for every input; residual branches start with this on purpose "
        "(zero_init_residual, last_gamma)\n"
        "    fix: none for a residual branch before its first step; otherwise start the weight at 1"
    )
    assert len(report) == 3
    assert [finding.severity for finding in report] == ["warning", "warning", "hint"]
    with pytest.raises(ValueError, match="no finding is of kind 'nan': choose one of exception"):
        report.of("nan")


def test_many_layers_are_counted():
    findings = tuple(Finding("hint", f"norm{i}", "unused", "not called", "none") for i in range(9))
    text = str(Report(findings, 9, 0, True))
    assert "also in norm1, norm2, norm3, norm4, norm5, norm6 and 2 more\n" in text


PAGE = (Path(__file__).parents[2] / "docs/checkup.md").read_text()


def test_the_page_has_every_kind():
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(KINDS)


def test_the_example_of_the_page_prints_what_is_printed_there(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    assert textwrap.indent(capsys.readouterr().out, "    ") in PAGE


def test_names_of_layers_are_escaped_in_the_text():
    name = "a\x1b[31m\n"
    model = nn.Sequential()
    model.add_module(name, nn.BatchNorm2d(2))
    report = check(model, torch.zeros(1, 2, 4, 4))
    assert {finding.layer for finding in report} == {name}
    assert r"] a\x1b[31m\n: " in str(report)
    assert "\x1b" not in str(report)
