"""Hostile operands: memory smaller than the shape says raises an error, and is not read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from momentnorm import use_backend
from momentnorm.core import graph_operators
from momentnorm.core.backends import cpu
from momentnorm.functional import batch_norm, group_norm, instance_norm, pooled_norm

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("cpu"):
        yield


def _shrink(operand: Tensor, how: str) -> None:
    """Make the memory of an operand smaller, and keep its shape."""
    storage = operand.detach().untyped_storage()
    storage.resize_(0 if how == "freed" else storage.nbytes() - 1)


def _placed(values: Tensor, where: str) -> Tensor:
    """Copy of x that begins at the start of its storage, or far behind it."""
    if where == "start":
        return values.clone()
    held = torch.cat((values.new_zeros(5000), values.flatten()))
    return held[5000:].view(values.shape)


def _operands(where: str = "start") -> dict[str, Tensor]:
    like = {name: torch.randn(2, 4, 3, 5) for name in ("input", "residual", "out")}
    channels = {name: torch.rand(4) for name in ("weight", "bias", "running_mean", "running_var")}
    return {name: _placed(values, where) for name, values in (like | channels).items()}


@pytest.mark.parametrize("where", ["start", "offset"])
@pytest.mark.parametrize("how", ["freed", "shortened"])
@pytest.mark.parametrize("name", [*_operands()])
@pytest.mark.parametrize("training", [True, False])
def test_a_call_without_memory_raises_and_changes_nothing(name, training, how, where):
    operands = _operands(where)
    _shrink(operands[name], how)
    others = {key: values.clone() for key, values in operands.items() if key != name}
    said = {"input": "the input", "residual": "the residual"}.get(name, name)
    with pytest.raises(RuntimeError, match=rf"the storage of {said} .* bytes are needed"):
        instance_norm(**operands, use_input_stats=training)
    for key, values in others.items():
        assert torch.equal(operands[key], values)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean"])
def test_operands_that_are_copied_first_are_checked_first(name):
    operands = _operands()
    del operands["out"]
    operands[name] = torch.rand(4, 2)[:, 0]
    operands[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"the storage of {name}"):
        batch_norm(**operands)


def test_a_strided_input_without_memory():
    x = torch.randn(2, 4, 2, 4)[..., 1::2]
    x.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match=r"the storage of the input .* has 8 bytes, and 256"):
        instance_norm(x)


@pytest.mark.parametrize("layout", ["as the input", "strided"])
def test_a_gradient_without_memory(layout):
    x = torch.randn(2, 4, 6, requires_grad=True)
    gradient = torch.randn(2, 4, 6 if layout == "as the input" else 12)[..., -6:]
    gradient.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="the storage of the gradient"):
        torch.autograd.grad(instance_norm(x), x, gradient)


# Changes between the forward and the backward


def _call(kind: str) -> tuple[Tensor, dict[str, Tensor]]:
    """y of a call with an activation, and its operands."""
    x, residual = (torch.randn(2, 4, 6).mul(2).requires_grad_() for _ in range(2))
    weight, bias = (torch.rand(4).requires_grad_() for _ in range(2))
    operands = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    tail = {"activation": "silu", "residual": residual}
    if kind == "visit":
        y = group_norm(x, 2, weight, bias, **tail)
    else:
        y = pooled_norm(x, weight, bias, pool=lambda mean, var: (0 * mean, var), **tail)
    return y, operands


@pytest.mark.parametrize("how", ["freed", "shortened"])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_memory_that_is_freed_before_the_backward(name, how):
    y, operands = _call("visit")
    _shrink(operands[name], how)
    with pytest.raises(RuntimeError, match="the storage of"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_data_that_is_replaced_before_the_backward(name):
    y, operands = _call("visit")
    operands[name].data = torch.randn(1, 2, 3) if operands[name].dim() == 3 else torch.randn(2)
    with pytest.raises(RuntimeError, match=r"should be .* to fit the input .* but is"):
        y.sum().backward()


def test_a_weight_that_is_replaced_by_a_shorter_one():
    x, weight = torch.randn(2, 4096, 4), torch.ones(4096, requires_grad=True)
    x.requires_grad_()
    y = group_norm(x, 32, weight)
    weight.data = torch.randn(4)
    with pytest.raises(RuntimeError, match=r"weight should be \(4096,\), .* but is \(4,\)"):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["visit", "policy"])
@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved[:1] if saved.dim() != 2 else saved[:, :1],
        lambda saved: saved.to(torch.bfloat16),
        lambda saved: saved.to("meta"),
        lambda saved: saved.to(torch.int64),
    ],
    ids=["shape", "dtype", "device", "integers"],
)
def test_what_a_hook_changes_is_refused(change, kind):
    with saved_tensors_hooks(lambda saved: saved, change):
        y, _ = _call(kind)
    with pytest.raises(RuntimeError):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["visit", "policy"])
def test_a_hook_may_change_the_layout(kind):
    def strided(saved):
        return torch.stack((saved, torch.full_like(saved, torch.nan)), -1)[..., 0]

    with saved_tensors_hooks(lambda saved: saved, strided):
        y, operands = _call(kind)
    found = torch.autograd.grad(y.square().sum(), [*operands.values()])
    torch.manual_seed(0)
    y, operands = _call(kind)
    expected = torch.autograd.grad(y.square().sum(), [*operands.values()])
    for mine, right in zip(found, expected, strict=True):
        assert torch.equal(mine, right)


def test_operators_of_compiled_graphs_check_too():
    x, short = torch.randn(2, 4, 6), torch.ones(3)
    _, mean, var = cpu.normalize(x, None, None, 1e-5)
    with pytest.raises(RuntimeError, match=r"weight should be \(4,\)"):
        graph_operators.normalize_backward(x, x, mean, var, short, None, 1e-5)
