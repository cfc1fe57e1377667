"""Bad calls raise what torch raises, and our message names the fix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import momentnorm
from momentnorm.functional import instance_norm


def _x(dtype=torch.float32):
    return torch.ones(2, 3, 4, 4).to(dtype)


def _c(*shape, dtype=torch.float32, **kwargs):
    return torch.ones(shape or (3,), **kwargs).to(dtype)


EVAL = {"use_input_stats": False}

#: (positional arguments, keyword arguments), and what our message must name.
BAD_CALLS = {
    "int": ((_x(torch.int64),), {}, "torch.int64.*convert the input"),
    "int in eval": ((_x(torch.int32), _c(), _c()), EVAL, "torch.int32.*convert"),
    "bool": ((_x(torch.bool),), {}, "torch.bool.*convert the input"),
    "complex": ((_x(torch.complex64),), {}, "torch.complex64.*convert the input"),
    "float8": ((_x(torch.float8_e4m3fn),), {}, "torch.float8_e4m3fn.*convert the input"),
    "sparse": ((_x().to_sparse(),), {}, "to_dense"),
    "no running statistics": ((_x(),), EVAL, "pass both, or use_input_stats=True"),
    "no running_var in eval": ((_x(), _c()), EVAL, "pass both"),
    "no running_var": ((_x(), _c()), {}, "pass both"),
    "no running_mean": ((_x(), None, _c()), {}, "pass both"),
    "one spatial element": ((torch.ones(2, 3, 1, 1),), {}, "larger input"),
    "two dimensions": ((torch.ones(2, 3),), {}, "more than 1 spatial element"),
    "no dimensions": ((torch.tensor(1.0),), {}, "more than 1 spatial element"),
    "one dimension in eval": ((torch.ones(3), _c(), _c()), EVAL, r"\(N, C, \*S\).*add"),
    "weight size": ((_x(), None, None, _c(4)), {}, r"weight should have shape \(3,\)"),
    "one weight": ((_x(), None, None, _c(1)), {}, r"weight should have shape \(3,\)"),
    "weight of two dimensions": ((_x(), None, None, _c(3, 1)), {}, r"shape \(3,\).*\(3, 1\)"),
    "bias size": ((_x(), None, None, None, _c(4)), {}, r"bias should have shape \(3,\)"),
    "running_mean size": ((_x(), _c(4), _c(4)), {}, r"running_mean should have shape \(3,\)"),
    "running_var size": ((_x(), _c(), _c(4)), EVAL, r"running_var should have shape \(3,\)"),
    "float64 weight": (
        (_x(), None, None, _c(dtype=torch.float64)),
        {},
        r"mixed dtypes: weight.*\.to\(input\.dtype\)",
    ),
    "float64 input": ((_x(torch.float64), None, None, _c(), _c()), {}, "mixed dtypes: weight"),
    "float64 input, bias": ((_x(torch.float64), None, None, None, _c()), {}, "dtypes: bias"),
    "float16 weight of bfloat16": (
        (_x(torch.bfloat16), None, None, _c(dtype=torch.float16)),
        {},
        "mixed dtypes: weight",
    ),
    "int weight": ((_x(), None, None, _c(dtype=torch.int64)), {}, "mixed dtypes: weight"),
    "two parameter dtypes": (
        (_x(torch.float16), None, None, _c(), _c(dtype=torch.float16)),
        {},
        "mixed dtypes.*convert one",
    ),
    "two statistics dtypes": (
        (_x(), _c(), _c(dtype=torch.float64)),
        {},
        "mixed dtypes: running_mean.*convert one",
    ),
    "running_mean requires grad": (
        (_x(), _c(requires_grad=True), _c()),
        {},
        r"running_mean\.requires_grad_\(False\)",
    ),
    "running_var requires grad in eval": (
        (_x(), _c(), _c(requires_grad=True)),
        EVAL,
        r"running_var\.requires_grad_\(False\)",
    ),
    "weight on another device": ((_x(), None, None, _c(device="meta")), {}, "weight.*meta.*move"),
    "bias on another device": ((_x(), None, None, None, _c(device="meta")), {}, "bias.*meta.*move"),
    "statistics on another device": (
        (_x(), _c(device="meta"), _c(device="meta")),
        EVAL,
        "running_mean.*meta.*move",
    ),
    "input on another device": ((_x().to("meta"), None, None, _c()), {}, "weight.*meta.*move"),
    "no momentum": ((_x(), _c(), _c()), {"momentum": None}, "momentum.*pass a float"),
    "no momentum, no statistics": ((_x(),), {"momentum": None}, "momentum.*pass a float"),
    "momentum of text": ((_x(), _c(), _c()), {"momentum": "0.1"}, "momentum.*number"),
    "no eps": ((_x(),), {"eps": None}, "eps.*pass a float"),
    "eps of text": ((_x(),), {"eps": "1e-5"}, "eps.*number"),
    "weight of a list": ((_x(), None, None, [1.0, 1.0, 1.0]), {}, "weight must be a Tensor"),
    "weight of a number": ((_x(), None, None, 1.0), {}, "weight must be a Tensor"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_a_bad_call_raises_what_torch_raises_and_names_the_fix(backend, call):
    arguments, keywords, message = BAD_CALLS[call]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.instance_norm(*arguments, **keywords)
    with pytest.raises(theirs.type, match=f"(?s){message}") as ours:
        instance_norm(*arguments, **keywords)
    assert ours.type is theirs.type


GOOD_CALLS = {
    "float32 parameters of half": ((_x(torch.float16), None, None, _c(), _c()), {}),
    "a bias alone": ((_x(torch.bfloat16), None, None, None, _c()), {}),
    "wider statistics": ((_x(), _c(dtype=torch.float64), _c(dtype=torch.float64)), {}),
    "narrower statistics": ((_x(), _c(dtype=torch.float16), _c(dtype=torch.float16)), EVAL),
    "integer statistics": ((_x(), _c(dtype=torch.int64), _c(dtype=torch.int64)), {}),
    "integer momentum": ((_x(), _c(), _c()), {"momentum": 1}),
    "eps of a tensor": ((_x(),), {"eps": torch.tensor(1e-3)}),
    "integer eps": ((_x(),), {"eps": 1}),
}


@pytest.mark.parametrize("call", GOOD_CALLS)
def test_an_unusual_call_that_torch_takes(backend, call):
    arguments, keywords = GOOD_CALLS[call]
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, expected = instance_norm(*arguments, **keywords), F.instance_norm(*copies, **keywords)
    torch.testing.assert_close(y, expected)
    for mine, right in zip(arguments[1:3], copies[1:3], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_require_grad_are_taken_without_autograd(backend, training):
    mean, var = _c(requires_grad=True), _c(requires_grad=True)
    with torch.no_grad():
        assert instance_norm(_x(), mean, var, use_input_stats=training).shape == _x().shape


def test_an_operand_at_fault_changes_no_running_statistic(backend):
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(RuntimeError, match="bias should"):
        instance_norm(_x(), mean, var, None, _c(4))
    assert not mean.any()
    assert torch.equal(var, torch.ones(3))


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_layers_name_the_dtype(name, dtype):
    x = torch.ones((2, 3) + (4,) * int(name[-2])).to(dtype)
    with pytest.raises(NotImplementedError, match=str(dtype)):
        getattr(momentnorm, name)(3)(x)
    with pytest.raises(NotImplementedError):
        getattr(torch.nn, name)(3)(x)


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="choose one of cpu, reference"),
        momentnorm.use_backend("gpu"),
    ):
        pass
