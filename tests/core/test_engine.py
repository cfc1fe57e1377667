"""Engine: properties of Instance Normalization by its definition, and the choice of a backend."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momentnorm import use_backend
from momentnorm.core import context, dispatch, engine, replay
from momentnorm.functional import batch_norm, instance_norm
from support import stand_in
from support.layouts import LAYOUTS

BACKENDS = [
    backend.name for backend in dispatch.BACKENDS if backend.refuses(torch.zeros(1, 1, 2)) is None
]


@st.composite
def feature_maps(draw):
    """Feature map in float64, of one to three spatial dimensions, without constant planes."""
    spatial = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    if torch.Size(spatial).numel() == 1:
        spatial[0] = 2
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), *spatial)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _everywhere(property):
    """Run a property of x on every backend."""

    @settings(max_examples=40)
    @given(x=feature_maps(), data=st.data())
    def test(x, data):
        for name in BACKENDS:
            with use_backend(name):
                property(x, data)

    test.__name__ = property.__name__
    return test


@_everywhere
def test_mean_is_zero_and_variance_one(x, data):
    y = instance_norm(x, eps=0.0).flatten(2)
    torch.testing.assert_close(y.mean(2), torch.zeros(x.shape[:2]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(y.var(2, correction=0), torch.ones(x.shape[:2]).double())


@_everywhere
def test_scale_and_offset_of_the_input_do_not_matter(x, data):
    scale = data.draw(st.floats(1e-3, 1e3))
    offset = data.draw(st.floats(-100, 100))
    # a plane of two close elements loses digits to the offset
    y, z = instance_norm(x, eps=0.0), instance_norm(scale * x + offset, eps=0.0)
    spread = scale * x.flatten(2).std(2, correction=0).min().item()
    torch.testing.assert_close(z, y, rtol=0, atol=1e-12 * (1 + abs(offset) / spread))


@_everywhere
def test_the_sign_of_the_input_is_the_sign_of_the_output(x, data):
    torch.testing.assert_close(instance_norm(-x), -instance_norm(x))


@_everywhere
def test_elements_have_no_order(x, data):
    planes = x.flatten(2)
    order = torch.tensor(data.draw(st.permutations(range(planes.shape[2]))))
    torch.testing.assert_close(instance_norm(planes[..., order]), instance_norm(planes)[..., order])


@_everywhere
def test_each_plane_is_alone(x, data):
    sample = data.draw(st.integers(0, x.shape[0] - 1))
    channel = data.draw(st.integers(0, x.shape[1] - 1))
    alone = instance_norm(x[sample : sample + 1, channel : channel + 1].contiguous())
    assert torch.equal(instance_norm(x)[sample, channel], alone[0, 0])
    other = x.clone()
    other[sample, channel] = torch.nan
    y, z = instance_norm(x), instance_norm(other)
    assert z[sample, channel].isnan().all()
    z[sample, channel] = y[sample, channel]
    assert torch.equal(y, z)


@_everywhere
def test_the_gradient_is_orthogonal_to_what_is_normalized_away(x, data):
    # adding a constant to a plane, or scaling it, changes nothing
    x = x.clone().requires_grad_()
    y = instance_norm(x, eps=0.0)
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    # with two elements dx is 0, so only rounding of terms of size 1 / std is left
    size = 1 + 1 / x.detach().flatten(2).std(2, correction=0).min()
    assert dx.flatten(2).sum(2).abs().max() < 1e-11 * size
    centred = x.detach() - x.detach().mean(tuple(range(2, x.dim())), keepdim=True)
    assert (dx * centred).flatten(2).sum(2).abs().max() < 1e-11 * size


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_gradients_of_given_moments(backend, shape):
    operands = [torch.randn(2, 3, 4), torch.randn(shape), torch.rand(shape) + 0.5]
    leaves = [t.double().requires_grad_() for t in operands]
    parameters = [torch.rand(3).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda *operands: engine.normalize_with(*operands, eps=1e-5), (*leaves, *parameters)
    )


# Choice of a backend


def test_kernels_do_the_forward_and_the_backward():
    x, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.ones(3, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)
    for training, calls in (
        (True, ["normalize", "normalize_backward"]),
        (False, ["normalize_with", "apply_gradient", "gradient_sums"]),
    ):
        with use_backend("stand_in"):
            stand_in.calls.clear()
            y = instance_norm(x, mean, var, weight, use_input_stats=training)
        y.sum().backward()  # the backend of the forward does the backward
        assert stand_in.calls == calls


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_has_the_same_bits_with_and_without_a_graph(backend, dtype, layout):
    mean, var, weight, bias = torch.randn(5), torch.rand(5) + 0.1, torch.randn(5), torch.randn(5)
    leaf = weight.clone().requires_grad_()
    for spatial in ((4, 11), (17, 16)):  # small planes have their own kernels
        x = LAYOUTS[layout]((3 * torch.randn(4, 5, *spatial) + 1).to(dtype))
        for tail in ({}, {"activation": "silu", "residual": x}):
            for function, options in (
                (batch_norm, {}),
                (instance_norm, {"use_input_stats": False}),
            ):
                recorded = function(x, mean, var, leaf, bias, **options, **tail)
                assert recorded.requires_grad
                plain = function(x, mean, var, weight, bias, **options, **tail)
                assert torch.equal(recorded, plain)


def test_no_pass_over_the_input_for_a_gradient_that_nobody_wants():
    x, weight = torch.randn(2, 3, 4, 4), torch.ones(3, requires_grad=True)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        instance_norm(x, weight=weight).sum().backward()
        assert stand_in.calls == ["normalize", "gradient_sums"]
        stand_in.calls.clear()
        with torch.no_grad():
            assert not instance_norm(x, weight=weight).requires_grad
        assert stand_in.calls == ["normalize"]


def test_nothing_is_asked_of_kernels_for_an_empty_input():
    with use_backend("stand_in"):
        stand_in.calls.clear()
        instance_norm(torch.empty(0, 3, 4, 4))
        assert stand_in.calls == []


def test_the_reason_of_each_choice_is_told():
    choice = dispatch.choose(torch.zeros(1, 1, 2).to("meta"))
    assert choice.backend.name == "reference"
    assert choice.why.startswith("cpu: ")
    with use_backend("reference"):
        assert dispatch.choose(torch.zeros(1, 1, 2)).why == "takes this call"


def test_backends_nest():
    with use_backend("reference"):
        with pytest.raises(ZeroDivisionError), use_backend("stand_in"):
            raise ZeroDivisionError
        assert dispatch.choose(torch.zeros(1, 1, 2)).backend.name == "reference"


def _chosen():
    return dispatch.choose(torch.zeros(1, 1, 2)).backend.name


def test_a_choice_belongs_to_the_thread_that_made_it():
    """Two ``with`` blocks that overlap in two threads do not change each other's backend."""
    before, inside, ended, found = _chosen(), threading.Event(), threading.Event(), []

    def other():
        found.append(_chosen())
        with use_backend("reference"):
            inside.set()
            assert ended.wait(60)
            found.append(_chosen())
        found.append(_chosen())

    with use_backend("stand_in"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(60)
        found.append(_chosen())
    ended.set()
    thread.join()
    assert found == [before, "stand_in", "reference", before]
    assert _chosen() == before


def test_a_thread_that_is_given_the_context_has_the_choice():
    found = []
    with use_backend("reference"):
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(lambda: found.append(_chosen()),))
        thread.start()
        thread.join()
    assert found == ["reference"]


def test_reasons_to_use_ordinary_operators():
    x = torch.zeros(1)
    assert context.transform_in_progress(x, None, torch.nn.Parameter(x)) is None
    reasons = []
    torch.func.vmap(lambda t: reasons.append(context.transform_in_progress(t)) or t)(x)
    reasons.append(context.transform_in_progress(torch._neg_view(x)))
    with torch.autograd.forward_ad.dual_level():
        reasons.append(context.transform_in_progress(x))
    for reason, words in zip(reasons, ("torch.func", "negated", "forward-mode"), strict=True):
        assert words in reason


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_second_derivatives_do_not_replay(backend, layout, affine, monkeypatch):
    """A gradient penalty runs on the backend, and agrees with autograd through the formula."""
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    parameters = [torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2 * affine)]
    direction = LAYOUTS[layout](torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    operands = [x, direction, *parameters[:1]]

    def penalty(function):
        y = function(
            x, weight=parameters[0] if affine else None, bias=parameters[1] if affine else None
        )
        gradients = torch.autograd.grad(y, [x, *parameters], direction, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), operands)

    exact = penalty(torch.nn.functional.instance_norm)
    monkeypatch.setattr(replay, "replay", None)
    for got, wanted in zip(penalty(instance_norm), exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
