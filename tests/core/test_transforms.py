"""torch's transforms of a program, through our layers: derivatives, batching, hooks, modes.

Graphs (compile, export, scripts) are in test_graphs.py.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import momentnorm
from momentnorm.functional import instance_norm

# torch itself scripts some of its rules when forward mode is first used.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


def _layers(training=True, **arguments):
    """Our layer and torch's, in float64, with the same weights and running statistics."""
    theirs = nn.InstanceNorm2d(3, affine=True, dtype=torch.float64, **arguments)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(0.5, 1.5)
        for buffer in theirs.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    ours = momentnorm.InstanceNorm2d(3, affine=True, dtype=torch.float64, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return ours.train(training), theirs.train(training)


def _x(*shape):
    return torch.randn(shape or (2, 3, 4, 5), dtype=torch.float64)


# Derivatives


def _formula(layer, x):
    """The layer in plain torch: torch 2.13 gets the third derivative of its own operator wrong."""
    mean, var = layer.running_mean.view(3, 1, 1), layer.running_var.view(3, 1, 1)
    if layer.training:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    weight, bias = layer.weight.view(3, 1, 1), layer.bias.view(3, 1, 1)
    return (x - mean) / torch.sqrt(var + layer.eps) * weight + bias


@pytest.mark.parametrize("training", [True, False])
def test_gradients_to_the_third_order(backend, training):
    ours, theirs = _layers(training, track_running_stats=True)
    x, direction, results = _x(), _x(), []
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
    layer, _ = _layers(training, track_running_stats=True)
    x = _x().requires_grad_()
    for batched in (False, True):
        y = layer(x)
        gradient = torch.randn((2, *y.shape) if batched else y.shape, dtype=y.dtype)
        found = torch.autograd.grad(y, (x, *layer.parameters()), gradient, is_grads_batched=batched)
        assert not any(g.requires_grad for g in found)


@pytest.mark.parametrize("training", [True, False])
def test_a_backward_may_run_twice(backend, training):
    layer, _ = _layers(training, track_running_stats=True)
    x = _x().requires_grad_()
    y = layer(x).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("create_graph", [True, False])
def test_batched_gradients(backend, training, create_graph):
    x, gradients, results = _x(), _x(7, 2, 3, 4, 5), []
    for layer in _layers(training, track_running_stats=True):
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
    x, tangent, results = _x(), _x(), []
    for layer in _layers(training, track_running_stats=True):
        with forward_ad.dual_level():
            y = layer(forward_ad.make_dual(x, tangent))
            results.append([*forward_ad.unpack_dual(y), layer.running_mean, layer.running_var])
        assert forward_ad.unpack_dual(layer.running_mean).tangent is None
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


def test_torch_func_derivatives(backend):
    ours, theirs = _layers()
    x, direction = _x(1, 3, 2, 2), _x(1, 3, 2, 2)
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
    x = _x(4, 3, 5, 5)
    for layer in _layers():
        parameters = {name: p.detach() for name, p in layer.named_parameters()}

        def loss(parameters, sample, layer=layer):
            return functional_call(layer, parameters, (sample[None],)).pow(3).sum()

        results.append(vmap(grad(loss), in_dims=(None, 0))(parameters, x))
    torch.testing.assert_close(results[0], results[1])


# vmap


@pytest.mark.parametrize("in_dim", [0, 1, -1])
def test_vmap_without_tracking(backend, in_dim):
    ours, theirs = _layers()
    x = _x(2, 2, 3, 4, 4).movedim(0, in_dim)
    torch.testing.assert_close(vmap(ours, in_dim)(x), vmap(theirs, in_dim)(x))


def test_vmap_in_eval_with_tracking(backend):
    ours, theirs = _layers(training=False, track_running_stats=True)
    x = _x(5, 2, 3, 4, 4)
    torch.testing.assert_close(vmap(ours)(x), vmap(theirs)(x))


def test_vmap_in_training_with_tracking_raises_as_in_torch(backend):
    for layer in _layers(track_running_stats=True):
        with pytest.raises(RuntimeError, match=r"(?i)in.?place"):
            vmap(layer)(_x(5, 2, 3, 4, 4))


def test_vmap_over_an_ensemble(backend):
    layers = [_layers()[0] for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = _x()

    def call(parameters, buffers):
        return functional_call(layers[0], (parameters, buffers), (x,))

    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(vmap(call)(parameters, buffers), expected)


def test_vmap_inside_a_gradient(backend):
    results = []
    for layer in _layers():
        x = torch.linspace(0, 1, 120, dtype=torch.float64).view(2, 1, 3, 4, 5).requires_grad_()
        y = vmap(layer)(x)
        results.append(torch.autograd.grad(y.pow(3).sum(), (x, *layer.parameters())))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


def test_functionalize(backend):
    def moved(x, mean, var):
        y = instance_norm(x, mean, var)
        return y, mean, var

    x = _x()
    expected = moved(x, torch.zeros(3), torch.ones(3))
    found = torch.func.functionalize(moved)(x, torch.zeros(3), torch.ones(3))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)


# Modes, subclasses and lazy values


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_dispatch_modes_see_ordinary_operators(backend, training):
    layer, _ = _layers(training, track_running_stats=True)
    x = _x().requires_grad_()
    with _Names() as forward:
        y = layer(x)
    assert "aten.sub.Tensor" in forward.names  # x - mean, which a kernel would do unseen
    with _Names() as backward:
        y.sum().backward()
    assert not any("momentnorm" in name for name in forward.names + backward.names)


class _Celsius(torch.Tensor):
    """A plain subclass: torch carries its type through functions."""


class _Recorder(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function.__name__


def test_tensor_subclasses(backend):
    ours, theirs = _layers()
    x = _x().as_subclass(_Celsius)
    y = ours(x)
    assert type(y) is type(theirs(x)) is _Celsius
    torch.testing.assert_close(y, theirs(x))
    assert instance_norm(torch.ones(1, 2, 3).as_subclass(_Recorder)) == "instance_norm"


class _Interceptor(torch.Tensor):
    """A subclass that knows torch's functions, and no others."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if str(getattr(function, "__module__", "")).startswith("momentnorm"):
            raise TypeError(f"what is {function.__name__}?")
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}], ids=["plain", "relu"])
@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
def test_subclasses_that_intercept_functions_get_torchs(name, options):
    arguments = (2, 4) if name == "GroupNorm" else (4,)
    ours, theirs = (getattr(lib, name)(*arguments) for lib in (momentnorm, nn))
    x = torch.randn(2, 4, 3, 5)
    y, expected = ours(x.as_subclass(_Interceptor), **options), theirs(x)
    assert type(y) is _Interceptor
    torch.testing.assert_close(
        y.as_subclass(torch.Tensor), expected.relu() if options else expected
    )


@pytest.mark.parametrize("name", ["InstanceNorm2d", "GroupNorm"])
def test_expanded_weights(name):
    """torch's per-sample gradients: a tensor subclass in the place of each parameter."""
    x, found = torch.randn(3, 4, 5, 5), []
    for library in (momentnorm, nn):
        norm = getattr(library, name)(*((2, 4) if name == "GroupNorm" else (4,)), affine=True)
        call_for_per_sample_grads(norm)(x).pow(2).sum().backward()
        found.append([parameter.grad_sample for parameter in norm.parameters()])
    for mine, right in zip(*found, strict=True):
        assert mine.shape == (3, 4)
        torch.testing.assert_close(mine, right)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_tensors_of_onednn():
    x = torch.randn(2, 3, 4, 5)
    layer = nn.BatchNorm2d(3)
    layer(x)  # running statistics
    expected = layer.eval()(x.to_mkldnn())
    momentnorm.accelerate(layer)
    found = layer(x.to_mkldnn())
    assert found.layout == expected.layout == torch._mkldnn
    assert torch.equal(found.to_dense(), expected.to_dense())
    with pytest.raises(RuntimeError) as theirs:
        nn.functional.group_norm(x.to_mkldnn(), 3)
    with pytest.raises(RuntimeError, match=re.escape(str(theirs.value))):
        momentnorm.functional.group_norm(x.to_mkldnn(), 3)


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
            function(dual, *statistics.values(), None, None, True)  # does not use them
    theirs, ours = messages
    assert ours.startswith(theirs)
    assert ours.endswith(".primal is")


@pytest.mark.parametrize("training", [True, False])
def test_lazily_negated_values(backend, training):
    layer, _ = _layers(training, track_running_stats=True)
    z = torch.randn(2, 3, 4, 5, dtype=torch.complex128)
    lazy, eager = z.conj().imag, -z.imag.clone()
    assert lazy.is_neg()
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(lazy), twin(eager))
    x = _x().requires_grad_()
    found, wanted = (torch.autograd.grad(layer(x), x, g)[0] for g in (lazy, eager))
    torch.testing.assert_close(found, wanted)


def test_gradients_without_memory(backend):
    x = _x().requires_grad_()
    for training in (True, False):
        y = _layers(training, track_running_stats=True)[0](x)
        (found,) = torch.autograd.grad(y, x, torch._efficientzerotensor(y.shape, dtype=y.dtype))
        assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("training", [True, False])
def test_fake_and_meta_tensors(backend, training):
    from torch._subclasses import FakeTensorMode

    def shadow(device):
        layer = momentnorm.InstanceNorm2d(3, affine=True, track_running_stats=True, device=device)
        x = torch.empty(2, 3, 4, 5, device=device, requires_grad=True)
        last = x.contiguous(memory_format=torch.channels_last)
        y = layer.train(training)(last)
        return y, *torch.autograd.grad(y.sum(), last)

    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = shadow("cpu")
    for y, dx in (fake, shadow("meta")):
        assert y.shape == dx.shape == (2, 3, 4, 5)
        assert y.dtype == dx.dtype == torch.float32
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_default_device_and_dtype(backend):
    x = torch.randn(2, 3, 4, 4)
    with torch.device("meta"):
        shadow = momentnorm.InstanceNorm2d(3, affine=True)
        assert shadow(torch.randn(2, 3, 4, 4)).is_meta
        y = momentnorm.InstanceNorm2d(3, affine=True, device="cpu")(x)
        # These come without a mode that torch takes off for functions.
        switchable = momentnorm.SwitchableNorm2d(3, device="cpu")
        z = switchable(x.requires_grad_())
        assert not momentnorm.Moments.of(x).mean.is_meta
        momentnorm.check(torch.nn.Sequential(switchable), x)
    assert (y.device.type, y.dtype) == ("cpu", torch.float32)
    torch.testing.assert_close(z, switchable(x))
    with torch.device("meta"):
        (dx,) = torch.autograd.grad(y.square().sum() + z.square().sum(), x)
    assert dx.device.type == "cpu"
    torch.set_default_dtype(torch.float64)
    try:
        layer = momentnorm.InstanceNorm2d(3, affine=True)
        assert layer.weight.dtype == layer(_x()).dtype == torch.float64
        assert instance_norm(_x().float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_utilities_of_modules(backend):
    x = _x()
    layer = nn.utils.skip_init(momentnorm.InstanceNorm2d, 3, affine=True, dtype=torch.float64)
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), instance_norm(x))

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(x), 2 * instance_norm(x))
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad.shape == (3,)


def test_inference_mode(backend):
    ours, theirs = _layers(track_running_stats=True)
    with torch.inference_mode():
        x = _x()
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours(x.clone()).requires_grad  # in eval: a clone is an ordinary tensor again


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_activation_checkpointing(backend, use_reentrant, training):
    layer, _ = _layers(training)
    x = _x().requires_grad_()
    leaves = (x, *layer.parameters())
    for leaf in leaves:
        leaf.grad = None
    layer(x).pow(3).sum().backward()
    wanted = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(layer, x, use_reentrant=use_reentrant).pow(3).sum().backward()
    for leaf, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_saved_tensor_hooks_and_anomaly_mode(backend):
    layer, _ = _layers()
    x = _x().requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert packed
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        (found,) = torch.autograd.grad(y.pow(3).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_what_backward_saves_is_small(backend):
    if backend == "reference":
        pytest.skip("memory matters where kernels run")
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        instance_norm(x, weight=torch.ones(3, requires_grad=True))
    large = [t for t in saved if t.numel() == x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()
    assert sum(t.numel() for t in saved) <= x.numel() + 3 + 2 * 6


# Training


def _model(norm):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        norm(4, affine=True, track_running_stats=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 2, 3),
        norm(2, affine=True),
    ).double()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    ],
)
def test_training_takes_the_same_steps(backend, optimizer):
    x, target = _x(4, 3, 9, 9), _x(4, 2, 5, 5)
    losses = []
    for norm in (momentnorm.InstanceNorm2d, nn.InstanceNorm2d):
        model = _model(norm)
        steps = optimizer(model.parameters())
        for _ in range(5):
            steps.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            steps.step()
        losses.append([loss.detach(), *model.state_dict().values()])
    for mine, right in zip(*losses, strict=True):
        torch.testing.assert_close(mine, right)


def test_distributed_data_parallel(backend, tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = _model(momentnorm.InstanceNorm2d)
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        x = _x(4, 3, 9, 9)
        for net in (model, parallel):
            net(x).square().sum().backward()
        for alone, shared in zip(model.parameters(), parallel.parameters(), strict=True):
            torch.testing.assert_close(shared.grad, alone.grad)
    finally:
        dist.destroy_process_group()
