"""Contract: the layers behave as those of the installed torch.

test_classes.py tests them as classes. tests/functional has values, gradients and bad calls, and
tests/core has transforms and graphs.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm.functional import instance_norm
from support.pairs import NAMES, SHAPES, pair
from support.tolerances import AGAINST_TORCH, GRADIENT, OUTPUT, assert_within

# Instance statistics in training and evaluation alike


def test_plain_layer_is_the_same_in_eval(backend):
    layer, x = momentnorm.InstanceNorm2d(4, affine=True), torch.randn(2, 4, 5, 5)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_tracking_layer_uses_its_running_statistics_in_eval(backend):
    ours, theirs = pair("InstanceNorm2d", 4, affine=True, track_running_stats=True)
    for _ in range(3):
        x = 2 * torch.randn(3, 4, 5, 5) + 1
        ours(x), theirs(x)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    assert (ours(x) - instance_norm(x, weight=ours.weight, bias=ours.bias)).abs().max() > 0.1


# Running statistics


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.75, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_running_statistics_move_as_torchs_do(backend, momentum, layout):
    mean, var = torch.randn(4), torch.rand(4)
    expected_mean, expected_var = mean.double(), var.double()
    for _ in range(3):
        x = (3 * torch.randn(5, 4, 3, 4) + 2).contiguous(memory_format=layout)
        instance_norm(x, mean, var, momentum=momentum)
        F.instance_norm(x.double(), expected_mean, expected_var, momentum=momentum)
    assert_within(mean, expected_mean, OUTPUT)
    assert_within(var, expected_var, OUTPUT)


def test_running_var_is_unbiased_and_the_output_biased(backend):
    x, mean, var = torch.tensor([[[1.0, 2.0, 6.0]]]), torch.zeros(1), torch.zeros(1)
    y = instance_norm(x, mean, var, momentum=1.0, eps=0.0)
    assert (mean.item(), var.item()) == (3.0, 7.0)  # 14 / 2, where the biased variance is 14 / 3
    torch.testing.assert_close(y.square().mean(), torch.tensor(1.0))


def test_running_statistics_of_a_large_mean_and_a_tiny_eps(backend):
    # a variance computed from 1 / sqrt(var + eps) would have none of these digits
    x = 100 + 1e-4 * torch.randn(2, 3, 40, 40)
    mean, var = torch.zeros(3), torch.zeros(3)
    expected = [torch.zeros(3, dtype=torch.float64) for _ in range(2)]
    instance_norm(x, mean, var, momentum=1.0, eps=1.0)
    F.instance_norm(x.double(), *expected, momentum=1.0, eps=1.0)
    torch.testing.assert_close(mean.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("stats_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_running_statistics_keep_their_own_dtype(backend, dtype, stats_dtype):
    ours, theirs = [(torch.zeros(4).to(stats_dtype), torch.ones(4).to(stats_dtype)) for _ in "12"]
    x = torch.randn(3, 4, 5, 5).to(dtype)
    instance_norm(x, *ours, momentum=0.3)
    F.instance_norm(x, *theirs, momentum=0.3)
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == stats_dtype
        units = AGAINST_TORCH if dtype != torch.float64 or stats_dtype != dtype else OUTPUT
        coarser = max(dtype, stats_dtype, key=lambda d: torch.finfo(d).eps)
        bound = units[coarser] * torch.finfo(coarser).eps
        torch.testing.assert_close(mine, right, rtol=0, atol=bound)
    y = instance_norm(x, *ours, use_input_stats=False)
    assert_within(y, F.instance_norm(x, *ours, use_input_stats=False).double(), AGAINST_TORCH)


# num_batches_tracked and momentum=None


def test_num_batches_tracked_never_increments(backend):
    ours, theirs = pair("InstanceNorm2d", 4, track_running_stats=True)
    for layer in (ours, theirs):
        layer(torch.randn(2, 4, 3, 3))
        assert layer.num_batches_tracked.item() == 0


def test_no_momentum_means_zero(backend):
    ours, theirs = pair("InstanceNorm2d", 4, momentum=None, track_running_stats=True)
    x = torch.randn(2, 4, 3, 3)
    for layer in (ours, theirs):
        layer(x)
        assert not layer.running_mean.any()
        assert torch.equal(layer.running_var, torch.ones(4))


# track_running_stats switched after construction


def test_tracking_switched_off_uses_the_instance_and_still_updates_in_training(backend):
    ours, theirs = pair("InstanceNorm2d", 4, track_running_stats=True)
    for layer in (ours, theirs):
        layer.track_running_stats = False
    x = torch.randn(2, 4, 3, 3) + 1
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.running_mean.any()
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone(), theirs.running_mean.clone()
    y, expected = ours.eval()(x), theirs.eval()(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(y, instance_norm(x))
    # as in torch, the statistics of the input are used in eval, and update these
    for layer, was in zip((ours, theirs), before, strict=True):
        assert not torch.equal(layer.running_mean, was)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_tracking_switched_on_without_buffers(backend):
    for layer in pair("InstanceNorm2d", 4):
        layer.track_running_stats = True
        layer(torch.randn(2, 4, 3, 3))
        with pytest.raises(RuntimeError, match="running_mean and running_var"):
            layer.eval()(torch.randn(2, 4, 3, 3))


# One spatial element


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_one_spatial_element(backend, name, tracking, training):
    x = torch.randn(2, 4, *(1,) * int(name[-2]))
    for layer in pair(name, 4, track_running_stats=tracking):
        layer.train(training)
        if tracking and not training:
            assert layer(x).shape == x.shape
        else:
            with pytest.raises(ValueError, match="more than 1 spatial element"):
                layer(x)


# Another number of channels


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_channels(backend, name):
    x = torch.randn(SHAPES[name[-2:]])
    for layer in pair(name, 5, affine=True):
        with pytest.raises(ValueError, match="num_features"):
            layer(x)
    for layer in pair(name, 5):
        with pytest.warns(UserWarning, match="num_features"):
            assert layer(x).shape == x.shape
    for layer in pair(name, 5, track_running_stats=True):
        with (
            pytest.warns(UserWarning, match="num_features"),
            pytest.raises(RuntimeError, match="running_mean should"),
        ):
            layer(x)


# Unbatched input, and any rank


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_unbatched_input(backend, name, training):
    ours, theirs = pair(name, 4, affine=True, track_running_stats=True)
    ours.train(training), theirs.train(training)
    x = torch.randn(SHAPES[name[-2:]])
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x[0]), ours(x[:1])[0])


def test_instance_norm_1d_reads_two_dimensions_as_channels_and_length(backend):
    ours, theirs = pair("InstanceNorm1d", 4, affine=True)
    x = torch.randn(4, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), ours(x[None])[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 6])
def test_dimensions(backend, name, dimensions):
    x = torch.randn((4,) * dimensions)
    ours, theirs = pair(name, 4)
    if dimensions - int(name[-2]) in (1, 2):
        torch.testing.assert_close(ours(x), theirs(x))
        return
    messages = []
    for layer in (ours, theirs):
        with pytest.raises(ValueError, match="expected") as raised:
            layer(x)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("dimensions", [3, 4, 5, 6, 7])
def test_functional_takes_any_rank(backend, dimensions):
    x = torch.randn((2, 3) + (2,) * (dimensions - 2))
    assert_within(instance_norm(x), F.instance_norm(x.double()), OUTPUT)


def test_functional_takes_two_dimensions_with_running_statistics(backend):
    x, mean, var = torch.randn(5, 3, requires_grad=True), torch.randn(3), torch.rand(3)
    y = instance_norm(x, mean, var, use_input_stats=False)
    expected = F.instance_norm(x, mean, var, use_input_stats=False)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), x) for t in (y, expected)))


# Empty batches, a documented difference. torch raises an IndexError (in the forward with affine, in
# the backward without), and its running statistics become NaN.


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (0, 4, 0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batches_work_and_leave_the_running_statistics_alone(backend, shape, training):
    layer = momentnorm.InstanceNorm2d(4, affine=True, track_running_stats=True).train(training)
    x = torch.empty(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()
    assert not layer.running_mean.any()
    assert torch.equal(layer.running_var, torch.ones(4))


def test_no_channels(backend):
    x = torch.empty(2, 0, 3, 3, requires_grad=True)
    y = instance_norm(x)
    assert y.shape == x.shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


# Half types with float32 parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_input_with_float32_parameters(backend, dtype, layout):
    x = torch.randn(2, 4, 5, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.rand(4) + 0.5).requires_grad_(), torch.randn(4, requires_grad=True)
    y = instance_norm(x, weight=weight, bias=bias)
    assert y.dtype == dtype
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight, bias), gradient)
    assert [g.dtype for g in found] == [dtype, torch.float32, torch.float32]
    twins = [t.detach().double().requires_grad_() for t in (x.contiguous(), weight, bias)]
    expected = F.instance_norm(twins[0], weight=twins[1], bias=twins[2])
    assert_within(y, expected, OUTPUT)
    wanted = torch.autograd.grad(expected, twins, gradient.double().contiguous())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input(backend, dtype):
    ours, theirs = pair("InstanceNorm2d", 4, affine=True)
    convolution = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        features = convolution(x)
        assert features.dtype == dtype
        for input in (features, x.new_ones(2, 4, 3, 3)):
            assert ours(input).dtype == theirs(input).dtype == input.dtype
        ours(features).float().square().sum().backward()
    assert ours.weight.grad.dtype == convolution.weight.grad.dtype == torch.float32


# In-place changes after the call


@pytest.mark.parametrize("training", [True, False])
def test_the_output_may_be_modified_in_place(backend, training):
    layer = momentnorm.InstanceNorm2d(4, affine=True, track_running_stats=True).train(training)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    copied = F.leaky_relu(layer(x), 0.01)
    in_place = F.leaky_relu_(layer(x), 0.01)
    if training:
        layer.reset_running_stats()
    for found, wanted in zip(
        torch.autograd.grad(in_place.square().sum(), (x, *layer.parameters())),
        torch.autograd.grad(copied.square().sum(), (x, *layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def _backward_after_doubling(operand, layer):
    x = torch.randn(2, 4, 5, 5, requires_grad=True).clone()
    y = layer(x)
    with torch.no_grad():
        (x if operand == "input" else layer.weight).mul_(2)
    y.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_modifying_the_input_before_backward_raises(backend, training):
    for layer in pair("InstanceNorm2d", 4, affine=True, track_running_stats=True):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            _backward_after_doubling("input", layer.train(training))


def test_modifying_the_weight_before_backward_raises(backend):
    # A documented difference: torch's InstanceNorm copies the weight for each sample and does not
    # notice. torch's GroupNorm and BatchNorm raise, as our layers do.
    for layer in (momentnorm.InstanceNorm2d(4, affine=True), nn.GroupNorm(4, 4)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            _backward_after_doubling("weight", layer)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("operand", ["bias", "running_mean", "running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modifying_what_no_gradient_needs_is_allowed(backend, training, operand, dtype):
    gradients = []
    for layer in pair("InstanceNorm2d", 4, affine=True, track_running_stats=True):
        layer.to(dtype).train(training)
        torch.manual_seed(0)
        x = torch.randn(1, 4, 5, 5, dtype=dtype, requires_grad=True)
        y = layer(x)
        with torch.no_grad():
            getattr(layer, operand).add_(2)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    torch.testing.assert_close(*gradients)
