"""Modules: the inputs of torch's own tests of modules, given to our classes.

The inputs come from torch's test suite (``module_db``), the kinds of check too: forward against
torch's class, gradients of both orders, layouts, factory arguments, devices, saving.
"""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from support.tolerances import AGAINST_TORCH, assert_within

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
from torch.testing._internal.common_modules import module_db

# Other tests compare half types, with float64 in place of torch's rounding.
DTYPES = [torch.float32, torch.float64]


#: torch calls its own deprecated script compiler when forward mode is first used.
FORWARD_MODE_WARNS = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


def _cases(prefix=""):
    """(name, inputs) of the classes that we replace: the lazy ones, or all others."""
    cases = []
    for info in module_db:
        name = info.module_cls.__name__
        ours = getattr(momentnorm, name, info.module_cls)
        if ours is info.module_cls or (prefix and not hasattr(nn, prefix + name)):
            continue
        function = (
            partial(info.module_inputs_func, lazy=True) if prefix else info.module_inputs_func
        )
        cases += [
            pytest.param(prefix + name, case, id=f"{prefix}{name}-{case.desc or 'plain'}")
            for case in function(
                info, device="cpu", dtype=torch.float64, requires_grad=True, training=True
            )
            # lazy classes, torch's too, read the wrong dimension of an unbatched input, and torch's
            # tests give lazy BatchNorms more positional arguments than they take
            if not (prefix and ("no_batch" in case.desc or len(case.constructor_input.args) > 4))
        ]
    return cases


every_case = pytest.mark.parametrize(("name", "case"), _cases())
lazy_too = pytest.mark.parametrize(("name", "case"), _cases() + _cases("Lazy"))
with_reference = pytest.mark.parametrize(
    ("name", "case"), [case for case in _cases() if case.values[1].reference_fn]
)
of_images_and_volumes = pytest.mark.parametrize(
    ("name", "case"),
    [
        case
        for case in _cases()
        if case.values[1].forward_input.args[0].dim() >= 4 and "no_batch" not in case.values[1].desc
    ],
)
in_both_modes = pytest.mark.parametrize("training", [True, False])


def _x(case, dtype=torch.float64):
    return case.forward_input.args[0].detach().to(dtype, copy=True).requires_grad_()


def _make(module_class, case, dtype=torch.float64, training=True):
    arguments = case.constructor_input
    layer = module_class(*arguments.args, **arguments.kwargs, device="cpu", dtype=dtype)
    layer(_x(case, dtype))  # a lazy layer reads num_features
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5 + number, parameter.numel()))
    return layer.train(training)


def _ours(name, case, dtype=torch.float64, training=True):
    return _make(getattr(momentnorm, name), case, dtype, training)


def _theirs(name, case, dtype=torch.float64, training=True):
    return _make(getattr(nn, name), case, dtype, training)


def _statistics_frozen(layer):
    """Function of the input alone, so that finite differences do not update running statistics."""

    def function(x, *parameters):
        twin = copy.deepcopy(layer)
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(twin, dict(zip(names, parameters, strict=True)), (x,))

    return function


@lazy_too
@in_both_modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_gradients(backend, name, case, training, dtype):
    ours, theirs = _ours(name, case, dtype, training), _theirs(name, case, dtype, training)
    assert type(ours) is getattr(momentnorm, name.removeprefix("Lazy"))
    results = []
    for layer in (ours, theirs):
        x = _x(case, dtype)
        y = layer(x)
        assert y.dtype == dtype
        gradient = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        results.append([y, *torch.autograd.grad(y, (x, *layer.parameters()), gradient)])
        results[-1].extend(layer.buffers())
    for mine, right in zip(*results, strict=True):
        if mine.is_floating_point():
            assert_within(mine, right.double(), AGAINST_TORCH)
        else:
            assert torch.equal(mine, right)


@with_reference
@in_both_modes
def test_forward_equals_the_catalogues_reference(backend, name, case, training):
    layer = _ours(name, case, training=training)
    x = case.forward_input.args[0]
    torch.testing.assert_close(layer(x), case.reference_fn(copy.deepcopy(layer), x))


@pytest.mark.filterwarnings(FORWARD_MODE_WARNS)
@every_case
@in_both_modes
def test_gradcheck(backend, name, case, training):
    layer = _ours(name, case, training=training)
    operands = (_x(case), *layer.parameters())
    assert gradcheck(
        _statistics_frozen(layer),
        operands,
        fast_mode=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=False,
    )


@every_case
@in_both_modes
def test_gradgradcheck(backend, name, case, training):
    layer = _ours(name, case, training=training)
    operands = (_x(case), *layer.parameters())
    assert gradgradcheck(
        _statistics_frozen(layer), operands, fast_mode=True, check_batched_grad=True
    )


@of_images_and_volumes
@in_both_modes
def test_memory_format_is_kept(backend, name, case, training):
    x = case.forward_input.args[0].detach()
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    layer = _ours(name, case, training=training).to(memory_format=channels_last)
    y_dense, y_last = copy.deepcopy(layer)(x), layer(x.contiguous(memory_format=channels_last))
    assert y_dense.is_contiguous()
    assert y_last.is_contiguous(memory_format=channels_last)
    torch.testing.assert_close(y_last, y_dense)


@every_case
@in_both_modes
def test_non_contiguous_input_and_gradient(backend, name, case, training):
    def noncontiguous(t):
        return torch.stack((t, torch.full_like(t, torch.nan)), dim=-1)[..., 0].detach()

    layer = _ours(name, case, training=training)
    x = _x(case)
    scattered = noncontiguous(x).requires_grad_()
    assert not scattered.is_contiguous() or not x.numel()
    y, y_scattered = copy.deepcopy(layer)(x), layer(scattered)
    torch.testing.assert_close(y_scattered, y)
    gradient = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
    for from_y, leaf, g in (
        (y, x, noncontiguous(gradient)),
        (y_scattered, scattered, gradient),
        (y_scattered, scattered, noncontiguous(gradient)),
    ):
        (found,) = torch.autograd.grad(from_y, leaf, g, retain_graph=True)
        torch.testing.assert_close(found, expected)


@lazy_too
def test_factory_arguments(name, case):
    arguments = case.constructor_input
    for dtype in (torch.float64, torch.float16):
        layer = getattr(momentnorm, name)(*arguments.args, **arguments.kwargs, dtype=dtype)
        for tensor in (*layer.parameters(), *layer.buffers()):
            assert tensor.dtype in (dtype, torch.int64)
    if not name.startswith("Lazy"):
        layer = getattr(momentnorm, name)(*arguments.args, **arguments.kwargs, device="meta")
        tensors = (*layer.parameters(), *layer.buffers())
        assert all(tensor.is_meta for tensor in tensors)
        # an average over all batches needs their number
        layer.train(getattr(layer, "momentum", 0) is not None)
        assert layer(_x(case, torch.float32).to("meta")).is_meta
        twin = layer.to_empty(device="cpu")
        twin.reset_parameters()
        assert not any(tensor.is_meta for tensor in twin.state_dict().values())


@lazy_too
@in_both_modes
def test_saving_and_copying(backend, name, case, training):
    layer = _ours(name, case, training=training)
    x = _x(case)
    expected = copy.deepcopy(layer)(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    fresh = _ours(name, case, training=training)
    fresh.load_state_dict(layer.state_dict())
    for twin in (
        torch.load(buffer, weights_only=False),
        pickle.loads(pickle.dumps(layer)),
        fresh,
    ):
        assert repr(twin) == repr(layer)
        assert twin.training == training
        assert torch.equal(twin(x), expected)


@every_case
def test_moving_between_dtypes(backend, name, case):
    layer = _ours(name, case, torch.float32)
    for move, dtype in (
        (nn.Module.double, torch.float64),
        (nn.Module.half, torch.float16),
        (nn.Module.bfloat16, torch.bfloat16),
        (nn.Module.float, torch.float32),
        (lambda m: m.to(torch.float64), torch.float64),
        (lambda m: m.to("cpu", torch.float32), torch.float32),
    ):
        move(layer)
        y = layer(_x(case, dtype))
        assert y.dtype == dtype
        y.float().sum().backward()
        assert all(p.grad.dtype == p.dtype == dtype for p in layer.parameters())
        layer.zero_grad()


@every_case
def test_training_and_eval_differ_only_with_tracking(backend, name, case):
    layer = _ours(name, case)
    x = _x(case)
    same = torch.equal(layer.train()(x), layer.eval()(x))
    tracking = getattr(layer, "track_running_stats", False)
    assert same == (not tracking or not x.numel())


@every_case
def test_the_input_is_not_modified(backend, name, case):
    layer, x = _ours(name, case), _x(case)
    before, version = x.detach().clone(), x._version
    layer(x).sum().backward()
    assert torch.equal(x, before)
    assert x._version == version


@every_case
def test_gradients_accumulate(backend, name, case):
    layer, x = _ours(name, case), _x(case)
    for times in (1, 2):
        layer.eval()(x).square().sum().backward()
        if times == 1:
            once = [t.grad.clone() for t in (x, *layer.parameters())]
    for gradient, first in zip((t.grad for t in (x, *layer.parameters())), once, strict=True):
        torch.testing.assert_close(gradient, 2 * first)
