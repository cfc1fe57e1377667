"""Errors: bad calls raise torch's types of error, and our message names the fix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import momentnorm
from momentnorm import functional
from momentnorm.functional import batch_norm, instance_norm
from support.pairs import BATCH_NAMES, CLASSES, NAMES, SHAPES


def _x(dtype=torch.float32):
    return torch.ones(2, 3, 4, 4).to(dtype)


def _c(*shape, dtype=torch.float32, **kwargs):
    return torch.ones(shape or (3,), **kwargs).to(dtype)


EVAL = {"use_input_stats": False}

#: Bad calls of instance_norm: positional arguments, keyword arguments, and part of our message.
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


TRAIN = {"training": True}

#: Bad calls of batch_norm.
BAD_BATCH_CALLS = {
    "int": ((_x(torch.int64), None, None), TRAIN, "batch_norm.*torch.int64.*convert the input"),
    "int in eval": ((_x(torch.int64), _c(), _c()), {}, "torch.int64.*convert the input"),
    "complex": ((_x(torch.complex64), None, None), TRAIN, "torch.complex64.*convert the input"),
    "no running statistics": ((_x(), None, None), {}, "pass both, or training=True"),
    "no running_var in eval": ((_x(), _c(), None), {}, "pass both"),
    "no running_mean in eval": ((_x(), None, _c()), {}, "pass both"),
    "no running_var": ((_x(), _c(), None), TRAIN, "pass both"),
    "no running_mean": ((_x(), None, _c()), TRAIN, "pass both"),
    "one pixel": ((torch.ones(1, 3, 1, 1), None, None), TRAIN, "more than 1 value per channel"),
    "one vector": ((torch.ones(1, 3), None, None), TRAIN, "larger batch"),
    "one dimension": ((torch.ones(3), None, None), TRAIN, r"\(N, C, \*S\).*add"),
    "one dimension in eval": ((torch.ones(3), _c(), _c()), {}, r"\(N, C, \*S\).*add"),
    "no dimension": ((torch.tensor(1.0), None, None), TRAIN, "add the missing"),
    "weight size": ((_x(), None, None, _c(4)), TRAIN, r"weight should have shape \(3,\)"),
    "bias size": ((_x(), None, None, None, _c(4)), TRAIN, r"bias should have shape \(3,\)"),
    "running_mean size": ((_x(), _c(4), _c(4)), TRAIN, r"running_mean should have shape \(3,\)"),
    "running_var size": ((_x(), _c(), _c(4)), {}, r"running_var should have shape \(3,\)"),
    "float64 weight": ((_x(), None, None, _c(dtype=torch.float64)), TRAIN, "mixed dtypes: weight"),
    "float64 input": ((_x(torch.float64), None, None, _c()), TRAIN, "mixed dtypes: weight"),
    "two parameter dtypes": (
        (_x(torch.float16), None, None, _c(), _c(dtype=torch.float16)),
        TRAIN,
        "mixed dtypes.*convert one",
    ),
    "two statistics dtypes": (
        (_x(), _c(), _c(dtype=torch.float64)),
        TRAIN,
        "mixed dtypes: running_mean.*convert one",
    ),
    "running_mean requires grad": ((_x(), _c(requires_grad=True), _c()), TRAIN, "running_mean"),
    "running_var requires grad": ((_x(), _c(), _c(requires_grad=True)), {}, "running_var"),
    "weight on another device": (
        (_x(), None, None, _c(device="meta")),
        TRAIN,
        "weight.*meta.*move",
    ),
    "no momentum": ((_x(), _c(), _c()), {**TRAIN, "momentum": None}, "momentum.*pass a float"),
    "momentum of text": ((_x(), _c(), _c()), {"momentum": "0.1"}, "momentum.*number"),
    "no eps": ((_x(), _c(), _c()), {"eps": None}, "eps.*pass a float"),
    "eps of text": ((_x(), _c(), _c()), {"eps": "1"}, "eps.*number"),
    "negative eps": ((_x(), _c(), _c()), {"eps": -1e-5}, "non-negative.*-1e-05"),
    "weight of a number": ((_x(), None, None, 1.0), TRAIN, "weight must be a Tensor"),
}

#: Bad calls of group_norm.
BAD_GROUP_CALLS = {
    "int": ((_x(torch.int64), 1), {}, "group_norm.*torch.int64.*convert the input"),
    "complex": ((_x(torch.complex64), 1), {}, "torch.complex64.*convert the input"),
    "sparse": ((_x().to_sparse(), 1), {}, "to_dense"),
    "no group": ((_x(), 0), {}, "by zero"),
    "less than no group": ((_x(), -3), {}, "greater than 0, got -3: choose a divisor of the 3"),
    "no divisor": ((_x(), 2), {}, "3 channels and num_groups=2: choose a divisor"),
    "more groups than channels": ((_x(), 6), {}, "choose a divisor of 3"),
    "half a group": ((_x(), 1.5), {}, "num_groups must be an int, not float"),
    "true groups": ((_x(), True), {}, "num_groups must be an int, not bool"),
    "groups of text": ((_x(), "1"), {}, "num_groups must be an int, not str"),
    "one pixel": ((torch.ones(1, 3, 1, 1), 3), {}, "more than 1 value.*fewer groups"),
    "one vector": ((torch.ones(1, 3), 3), {}, "more than 1 value.*fewer groups"),
    "one dimension": ((torch.ones(3), 1), {}, "at least 2 dimensions.*add"),
    "no dimension": ((torch.tensor(1.0), 1), {}, "at least 2 dimensions.*add"),
    "weight size": ((_x(), 1, _c(4)), {}, r"weight should have shape \(3,\)"),
    "weight of two dimensions": ((_x(), 1, _c(3, 1)), {}, r"shape \(3,\).*\(3, 1\)"),
    "bias size": ((_x(), 1, None, _c(4)), {}, r"bias should have shape \(3,\)"),
    "float64 weight": ((_x(), 1, _c(dtype=torch.float64)), {}, "mixed dtypes: weight"),
    "float64 input": ((_x(torch.float64), 1, _c(), _c()), {}, "mixed dtypes: weight"),
    "float16 weight of bfloat16": (
        (_x(torch.bfloat16), 1, _c(dtype=torch.float16)),
        {},
        "mixed dtypes: weight",
    ),
    "weight on another device": ((_x(), 1, _c(device="meta")), {}, "weight.*meta.*move"),
    "no eps": ((_x(), 1), {"eps": None}, "eps.*pass a float"),
    "eps of text": ((_x(), 1), {"eps": "1"}, "eps.*number"),
    "weight of a list": ((_x(), 1, [1.0, 1.0, 1.0]), {}, "weight must be a Tensor"),
}

OF_THE_FAMILY = {
    **{("batch_norm", call): bad for call, bad in BAD_BATCH_CALLS.items()},
    **{("group_norm", call): bad for call, bad in BAD_GROUP_CALLS.items()},
}


@pytest.mark.parametrize("call", OF_THE_FAMILY, ids="-".join)
def test_a_bad_call_of_the_family_raises_what_torch_raises(backend, call):
    arguments, keywords, message = OF_THE_FAMILY[call]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        getattr(F, call[0])(*arguments, **keywords)
    with pytest.raises(theirs.type, match=f"(?s){message}") as ours:
        getattr(functional, call[0])(*arguments, **keywords)
    assert ours.type is theirs.type


def test_no_eps_in_training(backend):
    with pytest.raises(ValueError, match="must be positive during training"):
        batch_norm(_x(), None, None, training=True, eps=0.0)
    assert batch_norm(_x(), _c(), _c(), eps=0.0).isfinite().all()


@pytest.mark.parametrize("name", ["instance_norm", "batch_norm", "group_norm"])
def test_an_option_at_fault_is_named(backend, name):
    arguments = {"group_norm": (1,), "batch_norm": (_c(), _c())}.get(name, ())
    function = getattr(functional, name)
    for options, error, message in (
        ({"activation": "swish"}, ValueError, "'swish'.*relu"),
        ({"residual": torch.ones(2, 3, 1, 1)}, RuntimeError, "residual should have the shape"),
        ({"out": torch.ones(3)}, RuntimeError, "out should have the shape"),
        ({"out": _x(), "inplace": True}, ValueError, "pass one"),
        ({"inplace": True, "bias": _c(requires_grad=True)}, RuntimeError, "cannot record"),
    ):
        with pytest.raises(error, match=message):
            function(_x(), *arguments, **options)


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


@pytest.mark.parametrize("name", [*NAMES, *BATCH_NAMES, "GroupNorm"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_layers_name_the_dtype(name, dtype):
    x = torch.ones(SHAPES.get(name[-2:], (3, 4, 5, 6))).to(dtype)
    with pytest.raises(NotImplementedError, match=str(dtype)):
        getattr(momentnorm, name)(*CLASSES[name])(x)
    with pytest.raises(RuntimeError):  # GroupNorm does not raise the subclass
        getattr(torch.nn, name)(*CLASSES[name])(x)


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="choose one of cpu, triton, reference"),
        momentnorm.use_backend("gpu"),
    ):
        pass


def test_a_layer_without_groups_raises_what_torch_raises():
    with pytest.raises(ZeroDivisionError) as theirs:
        torch.nn.GroupNorm(0, 4)
    with pytest.raises(theirs.type, match=str(theirs.value)):
        momentnorm.GroupNorm(0, 4)
