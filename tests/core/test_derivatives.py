"""Derivatives through our layers: higher orders, forward mode, torch.func and vmap."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import momentnorm
from momentnorm.functional import instance_norm
from support.pairs import feature_map, norm_pair

# torch calls its own deprecated script compiler when forward mode is first used.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


def _formula(layer, x):
    """y in plain torch operators, since torch 2.13's own has a wrong third derivative."""
    mean, var = layer.running_mean.view(3, 1, 1), layer.running_var.view(3, 1, 1)
    if layer.training:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    weight, bias = layer.weight.view(3, 1, 1), layer.bias.view(3, 1, 1)
    return (x - mean) / torch.sqrt(var + layer.eps) * weight + bias


@pytest.mark.parametrize("training", [True, False])
def test_gradients_to_the_third_order(backend, training):
    ours, theirs = norm_pair(training, track_running_stats=True)
    x, direction, results = feature_map(), feature_map(), []
    for layer, call in ((ours, ours), (theirs, lambda x: _formula(theirs, x))):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        upstream = direction.clone().requires_grad_()
        value = (call(leaves[0]) ** 3 * upstream).sum()
        derivatives = []
        for _ in range(3):
            gradients = torch.autograd.grad(value, [*leaves, upstream], create_graph=True)
            derivatives.extend(gradients)
            value = sum((g * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in gradients)
        results.append(derivatives)
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("training", [True, False])
def test_a_first_gradient_carries_no_graph(backend, training):
    layer, _ = norm_pair(training, track_running_stats=True)
    x = feature_map().requires_grad_()
    for batched in (False, True):
        y = layer(x)
        gradient = torch.randn((2, *y.shape) if batched else y.shape, dtype=y.dtype)
        found = torch.autograd.grad(y, (x, *layer.parameters()), gradient, is_grads_batched=batched)
        assert not any(g.requires_grad for g in found)


@pytest.mark.parametrize("training", [True, False])
def test_a_backward_may_run_twice(backend, training):
    layer, _ = norm_pair(training, track_running_stats=True)
    x = feature_map().requires_grad_()
    y = layer(x).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("create_graph", [True, False])
def test_batched_gradients(backend, training, create_graph):
    x, gradients, results = feature_map(), feature_map(7, 2, 3, 4, 5), []
    for layer in norm_pair(training, track_running_stats=True):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        found = torch.autograd.grad(
            layer(leaves[0]), leaves, gradients, is_grads_batched=True, create_graph=create_graph
        )
        if create_graph:
            squares = sum(g.square().sum() for g in found)
            found += torch.autograd.grad(squares, leaves, materialize_grads=True)
        results.append(found)
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("training", [True, False])
def test_forward_mode(backend, training):
    x, tangent, results = feature_map(), feature_map(), []
    for layer in norm_pair(training, track_running_stats=True):
        with forward_ad.dual_level():
            y = layer(forward_ad.make_dual(x, tangent))
            results.append([*forward_ad.unpack_dual(y), layer.running_mean, layer.running_var])
        assert forward_ad.unpack_dual(layer.running_mean).tangent is None
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


def test_torch_func_derivatives(backend):
    ours, theirs = norm_pair()
    x, direction = feature_map(1, 3, 2, 2), feature_map(1, 3, 2, 2)
    for derive in (
        lambda f: jvp(f, (x,), (direction,))[1],
        lambda f: vjp(f, x)[1](direction)[0],
        lambda f: grad(lambda t: (f(t) ** 3).sum())(x),
        lambda f: jacrev(f)(x),
        lambda f: jacfwd(f)(x),
        lambda f: hessian(lambda t: (f(t) ** 3).sum())(x),
    ):
        torch.testing.assert_close(derive(ours), derive(theirs))


def test_per_sample_gradients(backend):
    results = []
    x = feature_map(4, 3, 5, 5)
    for layer in norm_pair():
        parameters = {name: p.detach() for name, p in layer.named_parameters()}

        def loss(parameters, sample, layer=layer):
            return functional_call(layer, parameters, (sample[None],)).pow(3).sum()

        results.append(vmap(grad(loss), in_dims=(None, 0))(parameters, x))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", ["instance_norm", "batch_norm"])
def test_running_statistics_have_no_forward_derivative(name, statistic):
    x, ones = torch.randn(2, 3, 4), torch.ones(3)
    with forward_ad.dual_level():
        statistics = {"running_mean": ones.clone(), "running_var": ones.clone()}
        statistics[statistic] = forward_ad.make_dual(ones.clone(), ones)
        dual = forward_ad.make_dual(x, x)
        messages = []
        for library in (nn.functional, momentnorm.functional):
            function = getattr(library, name)
            with pytest.raises(RuntimeError, match="not differentiable wrt running_mean") as raised:
                function(dual, *statistics.values(), None, None, False)
            messages.append(str(raised.value))
            function(dual, *statistics.values(), None, None, True)  # does not read them
    theirs, ours = messages
    assert ours.startswith(theirs)
    assert ours.endswith(".primal is")


# vmap


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_vmap_without_tracking(backend, in_dim):
    ours, theirs = norm_pair()
    x = feature_map(2, 2, 3, 4, 4).movedim(0, in_dim)
    torch.testing.assert_close(vmap(ours, in_dim)(x), vmap(theirs, in_dim)(x))


def test_vmap_in_eval_with_tracking(backend):
    ours, theirs = norm_pair(training=False, track_running_stats=True)
    x = feature_map(5, 2, 3, 4, 4)
    torch.testing.assert_close(vmap(ours)(x), vmap(theirs)(x))


def test_vmap_in_training_with_tracking_raises_as_in_torch(backend):
    for layer in norm_pair(track_running_stats=True):
        with pytest.raises(RuntimeError, match=r"(?i)in.?place"):
            vmap(layer)(feature_map(5, 2, 3, 4, 4))


def test_vmap_over_an_ensemble(backend):
    layers = [norm_pair()[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = feature_map()

    def call(parameters, buffers):
        return functional_call(layers[0], (parameters, buffers), (x,))

    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(vmap(call)(parameters, buffers), expected)


def test_vmap_inside_a_gradient(backend):
    results = []
    for layer in norm_pair():
        x = torch.linspace(0, 1, 120, dtype=torch.float64).view(2, 1, 3, 4, 5).requires_grad_()
        y = vmap(layer)(x)
        results.append(torch.autograd.grad(y.pow(3).sum(), (x, *layer.parameters())))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


def test_functionalize(backend):
    def moved(x, mean, var):
        y = instance_norm(x, mean, var)
        return y, mean, var

    x = feature_map()
    expected = moved(x, torch.zeros(3), torch.ones(3))
    found = torch.func.functionalize(moved)(x, torch.zeros(3), torch.ones(3))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)
