"""BatchNorm and GroupNorm: layers, options and running statistics, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm.functional import batch_norm, group_norm
from support.batch_and_group_cases import (
    DTYPES,
    FUNCTIONS,
    every_function,
    in_both_modes,
    make_operands,
)
from support.layouts import LAYOUTS
from support.pairs import BATCH_NAMES, CLASSES, LAZY_BATCH_NAMES, pair
from support.tolerances import OUTPUT, STATISTICS, assert_within


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 1, None])
@pytest.mark.parametrize("name", BATCH_NAMES)
def test_running_statistics_move_as_torchs_do(backend, name, momentum):
    ours, theirs = pair(name, 4, momentum=momentum)
    theirs.double()
    shape = {"1d": (5, 4), "2d": (5, 4, 3, 2), "3d": (3, 4, 2, 1, 3)}[name[-2:]]
    for step in range(3):
        x = 3 * torch.randn(shape) + step
        assert_within(ours(x), theirs(x.double()), OUTPUT)
        assert ours.num_batches_tracked.item() == step + 1
        assert_within(ours.running_mean, theirs.running_mean, OUTPUT)
        assert_within(ours.running_var, theirs.running_var, OUTPUT)
    ours.eval(), theirs.eval()
    assert_within(ours(x), theirs(x.double()), OUTPUT)
    assert ours.num_batches_tracked.item() == 3


def test_no_momentum_is_the_average_of_all_batches(backend):
    layer, batches = momentnorm.BatchNorm1d(4, momentum=None), torch.randn(7, 5, 4)
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(layer.running_var, batches.var(1).mean(0))


@pytest.mark.parametrize("stats_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics_keep_their_own_dtype(backend, dtype, stats_dtype):
    # torch accepts fewer of these pairs of dtypes
    x = torch.randn(3, 4, 5, 5).to(dtype)
    found, wanted = [
        (torch.zeros(4).to(t), torch.ones(4).to(t)) for t in (stats_dtype, torch.double)
    ]
    batch_norm(x, *found, training=True, momentum=0.5)
    F.batch_norm(x.double(), *wanted, training=True, momentum=0.5)
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == stats_dtype
        # a sum of this input is exact to this tolerance, and rounded once
        bound = STATISTICS[dtype] + 2 * torch.finfo(stats_dtype).eps
        torch.testing.assert_close(mine.double(), right, rtol=bound, atol=bound)
    y = batch_norm(x, *found)
    assert_within(y, F.batch_norm(x.double(), *(s.double() for s in found)), OUTPUT)


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("switched", [True, False])
def test_tracking_switched_after_construction(backend, tracking, switched):
    ours, theirs = pair("BatchNorm2d", 4, track_running_stats=tracking)
    x = torch.randn(3, 4, 5, 6) + 1
    for layer in (ours, theirs):
        layer.track_running_stats = switched
    for training in (True, False, True):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))
        for mine, right in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
@in_both_modes
def test_empty_batches_work_and_leave_the_running_statistics_alone(backend, shape, training):
    layers = [momentnorm.BatchNorm2d(4), momentnorm.GroupNorm(2, 4)]
    for layer in layers:
        x = torch.empty(shape, requires_grad=True)
        y = layer.train(training)(x)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape
        assert not layer.weight.grad.any()
    assert not layers[0].running_mean.any()
    assert torch.equal(layers[0].running_var, torch.ones(4))
    for empty in (torch.empty(0, 4), torch.empty(2, 0), torch.empty(2, 0, 3)):
        assert batch_norm(empty, None, None, training=True).shape == empty.shape
        assert group_norm(empty, 1).shape == empty.shape


@pytest.mark.parametrize("name", BATCH_NAMES)
def test_dimensions(backend, name):
    for dimensions in range(1, 7):
        x = torch.randn((4,) * dimensions)
        results = []
        for layer in pair(name, 4):
            try:
                results.append(layer(x))
            except ValueError as error:
                results.append(str(error))
        assert type(results[0]) is type(results[1])
        if isinstance(results[1], str):
            assert results[0] == results[1]
        else:
            torch.testing.assert_close(*results)


@in_both_modes
def test_one_value_per_channel(backend, training):
    for shape in ((1, 4), (1, 4, 1)):
        for layer in pair("BatchNorm1d", 4):
            layer.train(training)
            if training:
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    layer(torch.randn(shape))
            else:
                assert layer(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
def test_another_number_of_channels(backend, name):
    for layer in pair(name, *CLASSES[name]):
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 6, 3, 3))


@pytest.mark.parametrize("name", [*BATCH_NAMES, *LAZY_BATCH_NAMES, "GroupNorm"])
def test_options_of_layers(backend, name):
    layer = getattr(momentnorm, name)(*CLASSES[name], activation=("leaky_relu", 0.2))
    plain = getattr(nn, name)(*CLASSES[name])
    for shape in {"1d": [(5, 4), (5, 4, 3)], "3d": [(5, 4, 1, 2, 3)]}.get(
        name[-2:], [(5, 4, 3, 2)]
    ):
        x, residual = torch.randn(2, *shape)
        expected = F.leaky_relu(plain(x) + residual, 0.2)
        torch.testing.assert_close(layer(x, residual), expected)
        assert type(layer) is getattr(momentnorm, name.removeprefix("Lazy"))
        assert "activation=('leaky_relu', 0.2)" in repr(layer)
        with torch.no_grad():
            out = torch.full_like(x, torch.nan)
            assert layer(x, residual, out=out) is out
            torch.testing.assert_close(out, expected)
            version = x._version
            layer.inplace = True
            assert layer(x, residual) is x
            assert x._version > version
            torch.testing.assert_close(x, expected)
        layer.inplace = False


@every_function
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_and_out_give_the_same_bits(backend, name, dtype):
    function = FUNCTIONS[name][0]
    for shape in ((5, 6), (2, 6, 3, 4)):
        ours, _, _ = make_operands(shape, dtype)
        with torch.no_grad():
            x, weight, bias, residual = ours
            tail = {"activation": "gelu", "residual": residual}
            expected = function(x, weight, bias, **tail)
            for layout in LAYOUTS:
                out = LAYOUTS[layout](torch.full_like(x, torch.nan))
                assert function(x, weight, bias, out=out, **tail) is out
                assert torch.equal(out, expected)
            assert function(x, weight, bias, inplace=True, **tail) is x
            assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "GroupNorm"])
@in_both_modes
def test_changes_in_place_before_backward(backend, name, training):
    layer = getattr(momentnorm, name)(*CLASSES[name]).train(training)
    x = torch.randn((5, 4) if name[-2:] == "1d" else (5, 4, 3, 2), requires_grad=True)
    found = [
        torch.autograd.grad(double(layer(x)).square().sum(), x)[0]
        for double in (lambda y: 2 * y, lambda y: y.mul_(2))
    ]
    if training:
        torch.testing.assert_close(*found)
    moved = x.clone()
    y = layer(moved)
    moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input(backend, name, dtype):
    ours, theirs = pair(name, *CLASSES[name])
    with torch.autocast("cpu", dtype=dtype):
        for x in (torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5, dtype=dtype)):
            assert ours(x).dtype == theirs(x).dtype == x.dtype


def test_training_takes_the_same_steps(backend):
    losses = []
    x, target = torch.randn(6, 3, 9, 9).double(), torch.randn(6, 2).double()
    for kind in (momentnorm, nn):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            kind.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3),
            kind.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(100, 8),
            kind.BatchNorm1d(8, momentum=None),
            nn.Linear(8, 2),
        ).double()
        steps = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(5):
            steps.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            steps.step()
        losses.append([loss.detach(), model.eval()(x), *model.state_dict().values()])
    for mine, right in zip(*losses, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)
