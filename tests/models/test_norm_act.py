"""accelerate on norms of timm and torchvision that define their own forward."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import accelerate, functional, restore, use_backend
from support.norm_act_stand_ins import (
    MODULES,
    BatchNormAct2d,
    DropBlock,
    FrozenBatchNorm2d,
    FrozenBatchNormAct2d,
    GroupNorm1,
    GroupNormAct,
    LayerNorm2d,
)

LAYERS = {
    "batch relu": (lambda: BatchNormAct2d(4, nn.ReLU(inplace=True)), "BatchNorm2d", "ReLU"),
    "batch plain": (lambda: BatchNormAct2d(4), "BatchNorm2d", ""),
    "batch average": (lambda: BatchNormAct2d(4, nn.SiLU(), momentum=None), "BatchNorm2d", "SiLU"),
    "batch untracked": (
        lambda: BatchNormAct2d(4, nn.ELU(), track_running_stats=False),
        "BatchNorm2d",
        "",
    ),
    "batch dropped": (lambda: BatchNormAct2d(4, nn.ReLU(), DropBlock()), "BatchNorm2d", ""),
    "group gelu": (lambda: GroupNormAct(4, 2, nn.GELU()), "GroupNorm", "GELU"),
    "group 1": (lambda: GroupNorm1(4), "GroupNorm", ""),
    "frozen": (lambda: FrozenBatchNorm2d(4), "BatchNorm2d", ""),
    "frozen relu": (lambda: FrozenBatchNormAct2d(4, nn.ReLU()), "BatchNorm2d", "ReLU"),
}


@pytest.fixture(autouse=True)
def _kernels():
    """Name a backend, since layers are kept where there are no kernels."""
    with use_backend("stand_in"):
        yield


@pytest.fixture
def calls(monkeypatch):
    """Activations with which momentnorm's functions are called."""
    called = []

    def counting(function):
        def call(*args, **kwargs):
            called.append(kwargs.get("activation"))
            return function(*args, **kwargs)

        return call

    for name in ("batch_norm", "group_norm"):
        monkeypatch.setattr(functional, name, counting(getattr(functional, name)))
    return called


def _step(layer, x):
    """Output, gradients and buffers, with equal random numbers each time."""
    torch.manual_seed(1)
    x = x.detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y.pow(2).sum(), [x, *layer.parameters()])
    return [y, *gradients, *(buffer.clone() for buffer in layer.buffers())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_swapped_layers_give_the_same_results(name, training, calls):
    build, ours, fused = LAYERS[name]
    model = nn.Sequential(build()).train(training)
    theirs, before = copy.deepcopy(model), type(model[0])
    x = torch.randn(3, 4, 5, 6)
    (row,) = accelerate(model, verify=x).swapped
    assert row.before == f"{before.__module__}.{before.__name__}"
    assert row.after == f"{row.before} on momentnorm.{ours}"
    assert row.fused == fused
    assert row.replay.right
    assert isinstance(model[0], before)
    assert repr(model) == repr(theirs)
    calls.clear()
    for mine, right in zip(_step(model, x), _step(theirs, x), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    assert calls == [fused.lower() or None]
    (row,) = accelerate(model).kept
    assert row.why_not == "already a momentnorm layer"
    assert [row.swapped for row in restore(model).rows] == [True]
    assert type(model[0]) is before
    assert vars(model[0]).keys() == vars(theirs[0]).keys()


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name, monkeypatch):
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, MODULES[module])
    model, x = nn.Sequential(LAYERS[name][0]()).eval(), torch.randn(2, 4, 3, 3)
    accelerate(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is type(model[0])
        assert torch.equal(twin(x), model(x))
        restore(twin)
        assert type(twin[0]) is type(LAYERS[name][0]())


def test_layer_norm_2d_is_kept():
    (row,) = accelerate(nn.Sequential(LayerNorm2d(4))).kept
    assert row.why_not == "momentnorm uses torch's own layer"


class Own(BatchNormAct2d):
    def forward(self, x):
        return super().forward(x) + 1


class Named(BatchNormAct2d):
    """Subclass that inherits timm's forward, and defines a name of momentnorm's class."""

    activation = "mine"


class Quiet(BatchNormAct2d):
    pass


def test_subclasses():
    own, named, quiet = accelerate(nn.Sequential(Own(4), Named(4), Quiet(4, nn.ReLU()))).rows
    assert own.why_not == "it has its own forward"
    assert named.why_not == "it defines 'activation', and so does momentnorm's class"
    assert (quiet.swapped, quiet.fused) == (True, "ReLU")


def test_a_class_whose_forward_was_replaced_is_kept(monkeypatch):
    monkeypatch.setattr(BatchNormAct2d, "forward", lambda self, x: x)
    (row,) = accelerate(nn.Sequential(BatchNormAct2d(4))).rows
    assert row.why_not == "it has its own forward"


def test_some_inputs_go_to_the_original_forward(calls):
    """Inputs and modes for which momentnorm's classes would give other results."""
    batch, frozen, group = BatchNormAct2d(4), FrozenBatchNorm2d(4), GroupNorm1(4)
    accelerate(nn.ModuleList([batch, frozen, group]))
    with pytest.raises(AssertionError, match="expected 4D input"):
        batch(torch.randn(2, 4))
    x = torch.randn(2, 4, 3, 3)
    assert frozen(x.half()).dtype is torch.float32  # the float32 buffers promote it
    frozen.running_mean.requires_grad_()
    frozen(x).sum().backward()
    assert frozen.running_mean.grad is not None
    group._fast_norm = True
    torch.testing.assert_close(group(x), nn.functional.group_norm(x, 1))
    assert calls == []


def test_an_activation_with_a_hook_is_called(calls):
    norm, seen = BatchNormAct2d(4, nn.ReLU()), []
    accelerate(nn.Sequential(norm))
    norm.act.register_forward_hook(lambda *args: seen.append(args[1][0].min().item()))
    norm(torch.randn(2, 4, 3, 3))
    assert calls == [None]
    assert seen[0] < 0


@pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_graphs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, nn.ReLU()), GroupNorm1(4)).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    assert len(accelerate(model).swapped) == 2
    traced, exported = torch.jit.trace(model, x), torch.export.export(model, (x,))
    assert "momentnorm" not in str(exported.graph)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    symbolic = torch.fx.symbolic_trace(nn.Sequential(model[0], model[2]))
    for graph in (traced, exported.module(), compiled):
        torch.testing.assert_close(graph(x), expected)
    torch.testing.assert_close(symbolic(x), model[2](model[0](x)))
    assert momentnorm.restore(model).swapped
    torch._dynamo.reset()
