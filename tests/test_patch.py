"""patch: whose functions torch.nn.functional's normalizations are, where, and for how long."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import instance_norm as held_before

import momentnorm
from momentnorm import patch, patching

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def calls(monkeypatch):
    """The names of ours that were called."""
    called = []

    def counting(function):
        def call(*args, **kwargs):
            called.append(function.__name__)
            return function(*args, **kwargs)

        return call

    ours = {theirs: counting(function) for theirs, function in patching._OURS.items()}
    monkeypatch.setattr(patching, "_OURS", ours)
    return called


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    left = torch.overrides._get_current_function_mode_stack()
    for _ in left:
        torch.overrides._pop_mode()
    assert not left


X = torch.linspace(-1, 2, 2 * 4 * 5).view(2, 4, 5) ** 2

CALLS = {
    "instance_norm": [
        lambda x: F.instance_norm(x),
        lambda x: F.instance_norm(input=x, eps=1e-3),
        lambda x: F.instance_norm(
            x, torch.zeros(4), torch.ones(4), torch.rand(4), torch.rand(4), True, 0.5, 1e-2
        ),
        lambda x: held_before(x),
    ],
    "batch_norm": [
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.batch_norm(
            x, torch.zeros(4), torch.ones(4), torch.rand(4), torch.rand(4), False, 0.5, 1e-2
        ),
        lambda x: F.batch_norm(input=x, running_mean=torch.zeros(4), running_var=torch.ones(4)),
    ],
    "group_norm": [
        lambda x: F.group_norm(x, 2),
        lambda x: F.group_norm(x, 4, torch.rand(4), torch.rand(4), 1e-2),
        lambda x: F.group_norm(num_groups=2, input=x, weight=torch.rand(4)),
    ],
}


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, some in CALLS.items() for call in some]
)
def test_every_way_to_call_reaches_ours(name, call, calls):
    torch.manual_seed(0)
    expected = call(X)
    assert calls == []
    with patch():
        torch.manual_seed(0)
        found = call(X)
    assert calls == [name]
    torch.testing.assert_close(found, expected)
    call(X)
    assert calls == [name]


def test_gradients_and_running_statistics():
    results = []
    for under in (False, True):
        x, weight = X.clone().requires_grad_(), torch.ones(4, requires_grad=True)
        mean, var = torch.zeros(4), torch.ones(4)
        if under:
            patched = patch().start()
        F.batch_norm(x, mean, var, weight, training=True).pow(3).sum().backward()
        if under:
            patched.stop()
        results.append([x.grad, weight.grad, mean, var])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def test_layers_of_torchs_use_ours_and_ours_still_do(calls):
    x = torch.randn(2, 4, 5)
    layers = [nn.InstanceNorm1d(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]
    expected = [layer(x) for layer in layers]
    with patch():
        for layer, right in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer(x), right)
        assert calls == ["instance_norm", "batch_norm", "group_norm"]
        momentnorm.InstanceNorm1d(4)(x)
        momentnorm.SwitchableNorm1d(4)(x[..., 0])
        momentnorm.ContrastNorm2d()(x[None])
        F.layer_norm(x, (5,)), F.rms_norm(x, (5,)), F.relu(x)
    assert len(calls) == 3


def test_nested_patches_end_one_by_one(calls):
    outer = patch()
    with outer:
        with patch(), outer:  # the same one again, too
            F.instance_norm(X)
            assert len(calls) == 1
        F.instance_norm(X)
    assert len(calls) == 2
    F.instance_norm(X)
    assert len(calls) == 2


def test_an_exception_ends_it(calls):
    with pytest.raises(ValueError, match="mine"), patch():
        raise ValueError("mine")
    with pytest.raises(RuntimeError, match="weight should have shape"), patch():
        F.instance_norm(X, weight=torch.ones(3))
    F.instance_norm(X)
    assert calls == ["instance_norm"]


def test_start_stop_and_permanent(calls):
    permanent = patch(permanent=True)
    F.group_norm(X, 2)
    other = patch().start()
    device = torch.device("cpu")
    device.__enter__()  # another mode, started since
    permanent.stop()
    F.group_norm(X, 2)
    assert len(calls) == 2
    assert torch._C._len_torch_function_stack() == 2
    device.__exit__(None, None, None)
    other.stop()
    F.group_norm(X, 2)
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="not in force in this thread: call start"):
        permanent.stop()


def test_a_patch_is_of_its_thread(calls):
    found = []

    def elsewhere():
        F.instance_norm(X)
        found.append(len(calls))
        try:
            patched.stop()
        except RuntimeError as error:
            found.append(str(error))
        with patch():
            F.instance_norm(X)
        found.append(len(calls))

    patched = patch().start()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found[0] == 0
    assert "in the same thread" in found[1]
    assert found[2] == 1
    F.instance_norm(X)
    assert len(calls) == 2
    patched.stop()


def test_a_backward_of_the_block_is_patched(calls):
    def norm(x):
        return F.instance_norm(x).pow(3)

    x = X.clone().requires_grad_()
    with patch():
        torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert calls == ["instance_norm"] * 2
    expected = X.clone().requires_grad_()
    norm(expected).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-4)


class Tagged(torch.Tensor):
    pass


def test_what_no_kernel_takes_and_subclasses_are_torchs(calls, backend):
    with patch():
        y = F.instance_norm(X.as_subclass(Tagged))
        assert type(y) is Tagged
        graph = torch.fx.symbolic_trace(lambda x: F.instance_norm(x))
        assert calls == []
        if backend == "cpu":
            assert F.instance_norm(X.to("meta")).is_meta
            F.instance_norm(torch.randn(2, 4, 10)[:, :, ::2])
            assert calls == []
        graph(X)
    assert calls == ["instance_norm"]
    with pytest.raises(TypeError), patch():
        F.instance_norm()


class Model(nn.Module):
    def forward(self, x):
        return F.relu(F.instance_norm(x))


def test_compiled_code_knows_whether_it_is_patched():
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(Model(), backend=keep, fullgraph=True)
    expected = Model()(X)
    torch.testing.assert_close(compiled(X), expected)
    with patch():
        torch.testing.assert_close(compiled(X), expected)
        compiled(X)
    compiled(X)
    theirs, ours = graphs
    assert any("function instance_norm" in target for target in theirs)
    assert not any("function instance_norm" in target for target in ours)

    @torch.compile(backend=keep, fullgraph=True)
    def inside(x):
        with patch():
            return F.instance_norm(x)

    torch.testing.assert_close(inside(X).relu(), expected)
    assert not any("function instance_norm" in target for target in graphs[-1])
    torch._dynamo.reset()


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_scripts_traces_and_exports_have_torchs_operators():
    with patch():
        scripted, traced = torch.jit.script(Model()), torch.jit.trace(Model(), X)
        exported = torch.export.export(Model(), (X,)).module()
    for graph in (scripted, traced, exported):
        assert torch.equal(graph(X), Model()(X))
    assert "momentnorm" not in str(traced.graph)
    assert "momentnorm" not in str(exported.graph)
