"""accelerate with verify=: comparison of results, and errors that undo the swap."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from momentnorm import accelerate, functional
from momentnorm.functional import classic
from momentnorm.models import accelerate as accelerate_module
from momentnorm.models import classes
from support.accelerated import small, types
from support.models import MODELS

#: Without a backend by name, layers are kept where there are no kernels.
pytestmark = pytest.mark.usefixtures("backend")


def everything(model):
    """State that verification must not change."""
    return {
        "types": types(model),
        "tensors": [tensor.clone() for tensor in model.state_dict(keep_vars=True).values()],
        "grad": [parameter.grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
    }


@pytest.mark.parametrize("training", [True, False])
def test_verification_leaves_no_trace(network, training):
    model, x, swapped, _ = network
    model.train(training)
    model(x).sum().backward()
    unverified = copy.deepcopy(model)
    accelerate(unverified)
    before = everything(model)
    report = accelerate(model, verify=x)
    assert types(model) == types(unverified)
    after = everything(model)
    for name in ("tensors", "grad", "random"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert (after["training"], after["hooks"]) == (before["training"], before["hooks"])
    assert report.verification.right
    assert (report.verification.gradients is None) == (not training)
    assert report.verification.outputs < 1e-4
    assert sum(row.replay is not None for row in report.rows) == swapped
    assert all(row.replay.right for row in report.swapped)
    assert all(row.replay.torch_seconds > 0 for row in report.swapped)
    assert "faster" in str(report) or not swapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["cyclegan", "pix2pix", "resnet", "convnext"])
def test_other_dtypes_and_layouts_are_verified_too(name, dtype):
    build, shape, swapped, _ = MODELS[name]
    model = build().to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
    report = accelerate(model, verify=x)
    assert sum(row.replay.right for row in report.swapped) == swapped
    assert report.verification.outputs <= report.verification.tolerance


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x, *, scale):
        x.relu_()  # overwrites the input
        return {"y": self.norm(x) * scale, "shape": x.shape}


def test_inputs_of_all_kinds():
    x = torch.randn(2, 4, 3, requires_grad=True)
    scale = torch.tensor(2.0)
    kept = x.detach().clone()
    report = accelerate(Keywords(), verify={"x": x, "scale": scale})
    assert report.verification.right
    assert torch.equal(x, kept)
    assert x.grad is None
    assert accelerate(nn.GroupNorm(2, 4), verify=(x,)).verification.right


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x).detach()


def test_outputs_without_gradients():
    assert accelerate(Detached(), verify=torch.randn(2, 3, 4, 4)).verification.gradients == 0


def _wrong(function, error):
    def call(*args, **kwargs):
        return function(*args, **kwargs) * (1 + error)

    return call


def test_a_wrong_layer_is_named_and_the_swap_undone(monkeypatch):
    monkeypatch.setattr(functional, "group_norm", _wrong(functional.group_norm, 1e-2))
    model = nn.Sequential(small(), nn.GroupNorm(2, 4))
    before = everything(model)
    with pytest.raises(
        accelerate_module.VerificationError, match=r"^1 differs from torch's layer"
    ) as raised:
        accelerate(model, verify=torch.randn(2, 3, 6, 6))
    after = everything(model)
    assert after["types"] == before["types"]
    assert not any(classes.MARK in vars(module) for module in model.modules())
    torch.testing.assert_close(after["tensors"], before["tensors"], rtol=0, atol=0)
    right, wrong = raised.value.report.rows
    assert right.replay.right
    assert not wrong.replay.right
    assert wrong.replay.our_error > 1e-3


def test_wrong_gradients_alone_are_noticed(monkeypatch):
    class Skewed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.01

    right = functional.instance_norm
    monkeypatch.setattr(
        functional, "instance_norm", lambda x, *a, **k: right(Skewed.apply(x), *a, **k)
    )
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(accelerate_module.VerificationError, match="differs from torch's layer"):
        accelerate(small(), verify=x)
    assert accelerate(small().eval(), verify=x).verification.right


def test_a_rounding_at_the_kink_of_an_activation_is_no_error(monkeypatch):
    def rounded(x, *args, activation=None, **kwargs):
        y = right(x, *args, **kwargs) + 2e-5  # changes the sign of a few of 100,000 values
        return y if activation is None else F.relu(y)

    right = functional.instance_norm
    monkeypatch.setattr(functional, "instance_norm", rounded)
    model = nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    (row,) = accelerate(model, verify=torch.randn(4, 4, 256, 256)).rows
    assert row.replay.difference > 1e-6


def test_wrong_running_statistics_are_noticed(monkeypatch):
    right = classic.move_towards
    monkeypatch.setattr(
        classic, "move_towards", lambda running, batch, share: right(running, batch, share / 2)
    )
    with pytest.raises(accelerate_module.VerificationError, match="differs from torch's layer"):
        accelerate(small(), verify=torch.randn(2, 3, 6, 6))


class TypeDependent(nn.Module):
    """Model whose result depends on the exact class of a layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(3)

    def forward(self, x):
        return self.norm(x) * (1 if type(self.norm) is nn.InstanceNorm2d else 2)


def test_a_wrong_model_is_undone():
    model = TypeDependent()
    with pytest.raises(
        accelerate_module.VerificationError, match="the model does not: outputs differ"
    ):
        accelerate(model, verify=torch.randn(2, 3, 6, 6))
    assert type(model.norm) is nn.InstanceNorm2d


def test_where_torch_is_wrong_float64_decides():
    model = nn.Sequential(nn.InstanceNorm2d(3, eps=1e-12)).eval()
    x = 1000 + 0.001 * torch.randn(2, 3, 16, 16)
    report = accelerate(model, verify=x)
    assert not report.verification.right
    assert "layers that differ by more than rounding: 1; error against float64: torch up to" in str(
        report
    )
    replay = report.rows[0].replay
    assert replay.difference > replay.tolerance
    assert replay.our_error < 1e-5 < replay.torch_error


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.InstanceNorm2d(3), 0

    def forward(self, x):
        self.calls += 1
        return self.norm(x) + self.calls


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Undecided(), torch.randn(1, 3, 4, 4), "verify= cannot compare anything"),
        (nn.Flatten(), torch.zeros(2, 2, dtype=torch.long), "no floating point tensor"),
        (small(), torch.randn(1, 5, 4, 4), "channels"),
    ],
    ids=["undecided", "integers", "misfit"],
)
def test_a_failed_trial_leaves_the_model_unchanged(model, inputs, message):
    before = types(model)
    with pytest.raises((ValueError, RuntimeError), match=message):
        accelerate(model, verify=inputs)
    assert types(model) == before
