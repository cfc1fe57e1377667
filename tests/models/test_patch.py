"""patch: calls that reach momentnorm's functions, and for how long."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import instance_norm as held_before

import momentnorm
from momentnorm import functional, patch
from momentnorm.models import patch as patch_module

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")

pytestmark = pytest.mark.usefixtures("backend")

THEIRS = {name: getattr(F, name) for name in patch_module.NAMES}


@pytest.fixture
def calls(monkeypatch):
    """Names of momentnorm's functions that were called."""
    called = []

    def counting(function):
        def call(*args, **kwargs):
            called.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for name in patch_module.NAMES:
        monkeypatch.setattr(functional, name, counting(getattr(functional, name)))
    return called


def _is_undone():
    return {
        name: getattr(F, name) for name in patch_module.NAMES
    } == THEIRS and not patch_module._active


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert _is_undone()


X = torch.linspace(-1, 2, 2 * 4 * 5).view(2, 4, 5) ** 2

CALLS = {
    "instance_norm": [
        lambda x: F.instance_norm(x),
        lambda x: F.instance_norm(input=x, eps=1e-3),
        lambda x: F.instance_norm(nn.Parameter(x)),
        lambda x: F.instance_norm(
            x, torch.zeros(4), torch.ones(4), torch.rand(4), torch.rand(4), True, 0.5, 1e-2
        ),
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
def test_every_form_of_call_reaches_momentnorm(name, call, calls):
    torch.manual_seed(0)
    expected = call(X)
    assert calls == []
    with patch():
        torch.manual_seed(0)
        found = call(X)
        assert inspect.signature(getattr(F, name)) == inspect.signature(THEIRS[name])
    assert calls == [name]
    torch.testing.assert_close(found, expected)
    call(X)
    assert calls == [name]


def test_gradients_and_running_statistics():
    results = []
    for patched in (False, True):
        x, weight = X.clone().requires_grad_(), torch.ones(4, requires_grad=True)
        mean, var = torch.zeros(4), torch.ones(4)
        if patched:
            with patch():
                y = F.batch_norm(x, mean, var, weight, training=True)
        else:
            y = F.batch_norm(x, mean, var, weight, training=True)
        y.pow(3).sum().backward()
        results.append([x.grad, weight.grad, mean, var])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def test_layers_of_torch_and_of_momentnorm_use_momentnorm(calls):
    layers = [nn.InstanceNorm1d(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]
    expected = [layer(X) for layer in layers]
    with patch():
        for layer, right in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer(X), right)
        assert calls == ["instance_norm", "batch_norm", "group_norm"]
        momentnorm.InstanceNorm1d(4)(X)
        momentnorm.SwitchableNorm1d(4)(X[..., 0])
        momentnorm.ContrastNorm2d()(X[None])
        F.layer_norm(X, (5,)), F.rms_norm(X, (5,)), F.relu(X)
    assert calls[3:] == ["instance_norm"]


def test_nested_patches_end_with_the_last(calls):
    outer = patch()
    with outer:
        with patch(), outer:  # the outer patch starts twice
            F.instance_norm(X)
        F.instance_norm(X)
        assert len(calls) == 2
    assert _is_undone()


def test_an_exception_ends_a_patch():
    with pytest.raises(ValueError, match="mine"), patch():
        raise ValueError("mine")
    assert _is_undone()
    with pytest.raises(RuntimeError, match="weight should have shape"), patch():
        F.instance_norm(X, weight=torch.ones(3))


def _interrupting(line):
    """Trace function that raises KeyboardInterrupt at the ``line``-th line of ``_set_starts``."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code is not patch_module._set_starts.__code__:
            return trace if frame.f_code.co_filename == patch_module.__file__ else None
        passed += event == "line"
        if event == "line" and passed == line:
            raise KeyboardInterrupt
        return trace

    return trace


def test_ctrl_c_at_any_line_leaves_all_or_no_functions_replaced(calls):
    line, interrupted = 0, True
    while interrupted:
        line, interrupted, traced = line + 1, False, sys.gettrace()
        try:
            with patch():
                F.instance_norm(X)
                sys.settrace(_interrupting(line))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(traced)
        assert _is_undone()
        try:
            sys.settrace(_interrupting(line))
            started = patch().start()
            sys.settrace(traced)
            started.stop()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(traced)
        assert _is_undone()
    assert line > 10
    assert len(calls) == line


@deprecated
@pytest.mark.parametrize("in_dims", [0, 1, 4])
def test_transforms_see_torchs_functions(in_dims, calls):
    x = torch.randn(2, 6, 6, 4, 6)

    def norm(z):
        return F.group_norm(F.instance_norm(z), 2)

    transforms = [
        lambda: torch.func.vmap(norm, in_dims)(x),
        lambda: torch.func.grad(lambda z: norm(z).pow(3).sum())(x),
        lambda: torch.func.jvp(norm, (x,), (x,))[1],
    ]
    expected = [transform() for transform in transforms]
    with patch():
        for transform, right in zip(transforms, expected, strict=True):
            assert torch.equal(transform(), right)
    assert calls == []


def test_start_stop_and_permanent(calls):
    permanent, other = patch(permanent=True), patch().start()
    permanent.stop()  # in any order
    F.group_norm(X, 2)
    other.stop()
    assert calls == ["group_norm"]
    assert _is_undone()
    for ended in (permanent, other, patch()):
        with pytest.raises(RuntimeError, match="has not been started: call start"):
            ended.stop()


def test_functions_imported_by_name(calls):
    with patch():
        held_before(X)
        assert calls == []
        held_inside = F.instance_norm
        held_inside(X)
        assert calls == ["instance_norm"]
    held_inside(X)
    assert calls == ["instance_norm"]


def test_replacements_by_others_are_put_back(monkeypatch):
    def before(*args, **kwargs):
        raise AssertionError("not while it is patched")

    def since(*args, **kwargs):
        return held(*args, **kwargs)

    with monkeypatch.context() as others:
        others.setattr(F, "batch_norm", before)
        patched = patch().start()
        F.batch_norm(X, None, None, training=True)
        patched.stop()
        assert F.batch_norm is before
    patched.start()
    held = F.batch_norm
    F.batch_norm = since
    patched.stop()
    assert F.batch_norm is since
    with patch():
        F.batch_norm(X, None, None, training=True)
    assert F.batch_norm is since
    since(X, None, None, training=True)
    F.batch_norm = THEIRS["batch_norm"]


def test_other_threads_see_the_patch(calls):
    with patch():
        thread = threading.Thread(target=lambda: F.instance_norm(X))
        thread.start()
        thread.join()
    assert calls == ["instance_norm"]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_recompute_with_momentnorm(use_reentrant, calls):
    def norm(x):
        return F.instance_norm(x).pow(3)

    x, expected = X.clone().requires_grad_(), X.clone().requires_grad_()
    with patch():
        y = torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=use_reentrant)
        y.sum().backward()
    assert calls == ["instance_norm"] * 2
    norm(expected).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-4)


class Tagged(torch.Tensor):
    pass


def test_torch_takes_subclasses_and_inputs_without_a_kernel(calls, backend):
    with patch():
        y = F.instance_norm(X.as_subclass(Tagged))
        assert type(y) is Tagged
        graph = torch.fx.symbolic_trace(lambda x: F.instance_norm(x))
        assert calls == []
        if backend == "cpu":
            assert F.instance_norm(X.to("meta")).is_meta
            assert calls == []
        torch.testing.assert_close(graph(X), held_before(X))
        with pytest.raises(TypeError):
            F.instance_norm()
        with pytest.raises((TypeError, AttributeError)):
            F.instance_norm(3)
    torch.testing.assert_close(graph(X), held_before(X))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return F.relu(F.instance_norm(self.norm(x)))


def test_compiled_code_knows_whether_it_is_patched():
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    model = Model()
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    expected = model(X)
    torch.testing.assert_close(compiled(X), expected)
    with patch():
        torch.testing.assert_close(compiled(X), expected)
        with patch():
            compiled(X)
    compiled(X)
    theirs, ours = graphs
    for name in ("instance_norm", "batch_norm"):
        assert any(f"function {name}" in target for target in theirs)
        assert not any(f"function {name}" in target for target in ours)
    torch._dynamo.reset()


def test_a_compiler_that_is_first_used_under_a_patch(backend):
    if backend != "cpu":
        pytest.skip("needs only one backend")
    program = """
import torch, momentnorm
F = torch.nn.functional
x = torch.randn(2, 4, 5)
expected = F.instance_norm(x)
def keep(graph, inputs):
    assert not any("function instance_norm" in str(node.target) for node in graph.graph.nodes)
    return graph.forward
with momentnorm.patch():
    found = torch.compile(lambda x: F.instance_norm(x), backend=keep, fullgraph=True)(x)
torch.testing.assert_close(found, expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_scripts_traces_and_exports_have_torchs_operators():
    model = Model().eval()
    with patch():
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, X)
        exported = torch.export.export(model, (X,)).module()
    for graph in (scripted, traced, exported):
        assert torch.equal(graph(X), model(X))
    assert "momentnorm" not in str(traced.graph)
    assert "momentnorm" not in str(exported.graph)
