"""``momentnorm.explain``: the steps, their values, and that they are the layer's own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm.explainer import (
    ExplainError,
    Explanation,
    Planes,
    Pooled,
    TraceMismatchError,
    explain,
    explains,
    names,
)
from momentnorm.explainer.example import X
from momentnorm.explainer.steps import BACKWARD, PARTS, RUNNING
from momentnorm.explainer.values import largest_difference


def _set(layer, **attributes):
    vars(layer).update(attributes)
    return layer


#: A layer of each class and way of use, and the shape of an input.
LAYERS = {
    "instance": (lambda: momentnorm.InstanceNorm2d(4), (2, 4, 3, 5)),
    "instance 1d": (lambda: momentnorm.InstanceNorm1d(4, affine=True), (2, 4, 7)),
    "instance 3d": (lambda: momentnorm.InstanceNorm3d(4), (2, 4, 2, 3, 2)),
    "instance tracking": (
        lambda: momentnorm.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 3, 5),
    ),
    "instance momentum None": (
        lambda: momentnorm.InstanceNorm2d(4, momentum=None, track_running_stats=True),
        (2, 4, 3, 5),
    ),
    "instance unbatched": (lambda: momentnorm.InstanceNorm2d(4, affine=True), (4, 3, 5)),
    "instance eps 0": (lambda: momentnorm.InstanceNorm2d(4, eps=0.0), (2, 4, 3, 5)),
    "instance relu": (lambda: momentnorm.InstanceNorm2d(4, activation="relu"), (2, 4, 3, 5)),
    "instance inplace": (lambda: momentnorm.InstanceNorm2d(4, inplace=True), (2, 4, 3, 5)),
    "lazy instance": (lambda: momentnorm.LazyInstanceNorm2d(affine=True), (2, 4, 3, 5)),
    "torch instance": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 5)),
    "torch lazy instance": (lambda: nn.LazyInstanceNorm2d(affine=True), (2, 4, 3, 5)),
    "batch": (lambda: momentnorm.BatchNorm2d(4), (2, 4, 3, 5)),
    "batch momentum None": (lambda: momentnorm.BatchNorm2d(4, momentum=None), (2, 4, 3, 5)),
    "batch untracked": (
        lambda: momentnorm.BatchNorm2d(4, track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch 1d": (lambda: momentnorm.BatchNorm1d(4), (2, 4, 7)),
    "batch of vectors": (lambda: momentnorm.BatchNorm1d(4, activation="gelu"), (5, 4)),
    "batch no bias": (lambda: momentnorm.BatchNorm3d(4, bias=False), (2, 4, 2, 3, 2)),
    "torch batch": (lambda: nn.BatchNorm2d(4), (2, 4, 3, 5)),
    "group": (lambda: momentnorm.GroupNorm(2, 4, activation="silu"), (2, 4, 3, 5)),
    "group of one": (lambda: momentnorm.GroupNorm(1, 4), (2, 4, 3, 5)),
    "group of vectors": (lambda: momentnorm.GroupNorm(2, 4), (3, 4)),
    "torch group": (lambda: nn.GroupNorm(2, 4, affine=False), (2, 4, 3, 5)),
    "layer": (lambda: momentnorm.LayerNorm((4, 3, 5)), (2, 4, 3, 5)),
    "layer last": (lambda: nn.LayerNorm(5, bias=False), (2, 4, 3, 5)),
    "layer plain": (lambda: nn.LayerNorm((4, 3), elementwise_affine=False), (4, 3)),
    "rms": (lambda: momentnorm.RMSNorm((4, 3, 5)), (2, 4, 3, 5)),
    "rms eps": (lambda: nn.RMSNorm(5, eps=0.1), (2, 4, 3, 5)),
    "local response": (lambda: momentnorm.LocalResponseNorm(3, alpha=0.5), (2, 4, 3, 5)),
    "local response even": (lambda: nn.LocalResponseNorm(4, 0.9, 0.6, 2.0), (2, 5, 3)),
    "switchable": (lambda: momentnorm.SwitchableNorm2d(4), (2, 4, 3, 5)),
    "switchable 1d": (lambda: momentnorm.SwitchableNorm1d(4), (3, 4)),
    "switchable 3d sums": (
        lambda: momentnorm.SwitchableNorm3d(4, using_moving_average=False),
        (2, 4, 2, 3, 2),
    ),
    "switchable without batch": (
        lambda: momentnorm.SwitchableNorm2d(4, using_bn=False),
        (2, 4, 3, 5),
    ),
    "batch instance": (lambda: momentnorm.BatchInstanceNorm2d(4), (2, 4, 3, 5)),
    "batch instance no longer tracking": (
        lambda: _set(momentnorm.BatchInstanceNorm2d(4), track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch no longer tracking": (
        lambda: _set(momentnorm.BatchNorm2d(4), track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch instance momentum None": (
        lambda: momentnorm.BatchInstanceNorm2d(4, momentum=None),
        (2, 4, 3, 5),
    ),
    "ibn": (lambda: momentnorm.IBN(4, 0.25), (2, 4, 3, 5)),
    "contrast": (lambda: momentnorm.ContrastNorm2d(0.5), (2, 4, 3, 5)),
    "filter response": (lambda: momentnorm.FilterResponseNorm2d(4), (2, 4, 3, 5)),
    "filter response learned eps": (
        lambda: momentnorm.FilterResponseNorm2d(4, learnable_eps=True, threshold=False),
        (2, 4, 3, 5),
    ),
    "evonorm s0": (lambda: momentnorm.EvoNorm2dS0(4, 2), (2, 4, 3, 5)),
    "evonorm b0": (lambda: momentnorm.EvoNorm2dB0(4), (2, 4, 3, 5)),
    "conditional": (lambda: momentnorm.ConditionalInstanceNorm2d(4, 3), (2, 4, 3, 5)),
    "conditional mixed": (lambda: momentnorm.ConditionalInstanceNorm2d(4, 3), (2, 4, 3, 5)),
    "adaptive": (lambda: momentnorm.AdaptiveInstanceNorm2d(4), (2, 4, 3, 5)),
    "adain": (lambda: momentnorm.AdaIN(), (2, 4, 3, 5)),
    "adain pytorch": (lambda: momentnorm.AdaIN(variant="pytorch"), (2, 4, 3, 5)),
    "spade": (lambda: momentnorm.SPADE(4, 2, hidden_channels=8), (2, 4, 3, 5)),
    "spade batch": (
        lambda: momentnorm.SPADE(4, 2, norm="batch", hidden_channels=8),
        (2, 4, 3, 5),
    ),
}

#: What else a call takes.
OPERANDS = {
    "conditional": lambda: (torch.tensor([2, 0]),),
    "conditional mixed": lambda: (torch.tensor([0.5, 0.2, 0.3]),),
    "adaptive": lambda: (torch.randn(2, 4), torch.randn(2, 4)),
    "adain": lambda: (torch.randn(2, 4, 7, 2),),
    "adain pytorch": lambda: (torch.randn(1, 4, 7, 2),),
    "spade": lambda: (torch.randn(2, 2, 6, 6),),
    "spade batch": lambda: (torch.randn(2, 2, 6, 6),),
}

#: These compute in the input's dtype where the reference does not, and are compared in float64.
IN_THEIR_DTYPE = (
    "adain",
    "adain pytorch",
    "conditional mixed",
    "spade",
    "spade batch",
    "evonorm s0",
    "evonorm b0",
)

every_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind, dtype=torch.float32, training=True):
    """The layer with parameters and buffers unlike their first values, and its operands."""
    make, shape = LAYERS[kind]
    x = torch.randn(shape).to(dtype) * 3 + 2
    more = OPERANDS.get(kind, tuple)()
    layer = make()
    with torch.no_grad():
        layer(x.float().clone(), *more)  # lazy layers have parameters now; buffers have moved
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if hasattr(layer, "gate"):
            layer.gate.copy_(torch.tensor([0.0, 0.3, 1.0, 1.2]))
    more = tuple(one.to(dtype) if one.is_floating_point() else one for one in more)
    return layer.to(dtype).train(training), x, *more


@every_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_last_step_is_the_output(kind, training, dtype):
    if dtype == torch.bfloat16 and kind.startswith("local response"):
        pytest.skip("torch has no average pooling of bfloat16 on the CPU")
    layer, x, *more = made(kind, dtype, training)
    trace = explain(layer, x, *more)
    with torch.no_grad(), momentnorm.use_backend("reference"):
        y = copy.deepcopy(layer)(x.clone(), *more)
    assert trace.y.dtype == dtype
    assert trace.y.shape == y.shape
    if type(layer).__module__.startswith("torch.nn") or kind in IN_THEIR_DTYPE:
        close = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
        if kind.startswith("spade"):
            close *= 8  # three convolutions
        torch.testing.assert_close(trace.y, y, rtol=close, atol=close)
    else:
        assert torch.equal(trace.y, y)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_stays_as_it_is(kind, training):
    layer, x, *more = made(kind, training=training)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    kept, hooked = x.clone(), layer.training
    explain(layer, x, *more, gradient="ones")
    assert torch.equal(x, kept)
    assert layer.training == hooked
    assert all(parameter.grad is None for parameter in layer.parameters())
    after = layer.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_after_are_what_a_call_leaves(kind, training):
    layer, x, *more = made(kind, training=training)
    trace = explain(layer, x, *more)
    before = copy.deepcopy(dict(layer.named_buffers()))
    with torch.no_grad(), momentnorm.use_backend("reference"):
        layer(x.clone(), *more)
    theirs = {step.name: step.values for step in trace.part(RUNNING)}
    moved = [name for name in theirs if not name.endswith(("_before", "_of_batch"))]
    buffers = dict(layer.named_buffers())
    for name in moved:
        after = buffers[name].flatten()
        torch.testing.assert_close(theirs[name], after, rtol=1e-6, atol=1e-6)
    changed = {n for n in before if "running" in n and not torch.equal(before[n], buffers[n])}
    assert changed <= set(moved)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_the_gradients_are_those_of_the_layer(kind, training):
    layer, x, *more = made(kind, torch.float64, training)
    if getattr(layer, "inplace", False):
        layer.inplace = False
    gradient = torch.randn_like(x)
    trace = explain(layer, x, *more, gradient=gradient)
    leaf = x.clone().requires_grad_()
    with momentnorm.use_backend("reference"):
        layer(leaf, *more).backward(gradient)
    torch.testing.assert_close(trace["dx"].values, leaf.grad, rtol=1e-9, atol=1e-9)
    for name, parameter in layer.named_parameters():
        owner, _, last = name.rpartition(".")
        if kind.startswith(("conditional", "spade")):
            continue  # theirs are of what the weights are computed from
        step = trace[f"{owner}.d{last}" if owner else f"d{last}"]
        expected = parameter.grad.reshape(step.shape)
        torch.testing.assert_close(step.values, expected, rtol=1e-9, atol=1e-9)


@every_layer
def test_the_steps_can_be_shown(kind):
    layer, x, *more = made(kind)
    trace = explain(layer, x, *more).backward("one")
    assert [step.part for step in trace] == sorted((s.part for s in trace), key=PARTS.index)
    assert len(set(trace.names)) == len(trace)
    for step in trace:
        assert len(step.axes) == step.values.dim()
    for text in (str(trace), trace._repr_html_(), json.dumps(trace.to_dict(), allow_nan=False)):
        for step in trace:
            assert step.name in text


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("family", ["instance", "batch", "group"])
def test_activation_and_residual(family, activation):
    x, residual, gradient = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    layer = {
        "instance": lambda **options: momentnorm.InstanceNorm2d(4, affine=True, **options),
        "batch": lambda **options: momentnorm.BatchNorm2d(4, **options),
        "group": lambda **options: momentnorm.GroupNorm(2, 4, **options),
    }[family](activation=("leaky_relu", 0.3) if activation == "leaky_relu" else activation).double()
    trace = explain(layer, x, residual=residual, gradient=gradient)
    operands = [one.clone().requires_grad_() for one in (x, residual)]
    with momentnorm.use_backend("reference"):
        y = copy.deepcopy(layer)(operands[0], residual=operands[1])
    y.backward(gradient)
    assert torch.equal(trace.y, y.detach())
    torch.testing.assert_close(trace["dx"].values, operands[0].grad)
    torch.testing.assert_close(trace["dresidual"].values, operands[1].grad)
    assert trace["pre_activation"].values.shape == x.shape


def test_the_published_example():
    trace = explain("instance", X)
    assert trace["mean"].values.tolist() == [[5.0, 13.5], [5.0, 15.5]]
    assert trace["var"].values.tolist() == [[8.5, 7.25], [6.5, 8.75]]
    assert trace["centred"].values[0, 0].tolist() == [[-4.0, 1.0], [4.0, -1.0]]
    assert trace["pools"].values.tolist() == [[0, 1], [2, 3]]


def test_pooled_steps_are_those_of_all_elements():
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64) * torch.arange(1, 5).view(1, 4, 1, 1)
    for name, options, dims, shape in (
        ("batch", {}, (0, 2, 3), x.shape),
        ("group", {"num_groups": 2}, (2, 3, 4), (2, 2, 2, 3, 5)),
        ("layer", {}, (1, 2, 3), x.shape),
    ):
        trace = explain(name, x, **options)
        expected = x.reshape(shape).var(dims, correction=0).flatten().unique()
        torch.testing.assert_close(trace["var"].values.unique(), expected)


def test_pools_say_who_shares():
    x = torch.randn(2, 4, 3)
    assert explain("batch", x)["pools"].values.tolist() == [[0, 1, 2, 3]] * 2
    groups = explain("group", x, num_groups=2)["pools"].values
    assert groups.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    switchable = explain("switchable", torch.randn(2, 3, 2, 2))
    assert switchable["ln_pools"].values.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert switchable["bn_pools"].values.tolist() == [[0, 1, 2]] * 2


def test_the_shares_of_a_mixture():
    weights = torch.tensor([2.0, 1.0, 1.0]).log()
    trace = explain("switchable", torch.randn(2, 3, 4, 4), mean_weight=weights)
    torch.testing.assert_close(
        trace["mean_shares"].values, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    )
    mixed = sum(
        share * trace[f"{kind}_mean"].values
        for share, kind in zip((0.5, 0.25, 0.25), ("in", "ln", "bn"), strict=True)
    )
    torch.testing.assert_close(trace["mean"].values, mixed)


def test_the_update_has_its_arithmetic():
    trace = explain("batch", X, momentum=0.25, running_mean=[1.0, 2.0])
    step = trace["running_mean"]
    torch.testing.assert_close(step.values, torch.tensor([0.75 + 1.25, 1.5 + 0.25 * 14.5]))
    assert step.worked.numbers == (0.25, 1.0, 0.25, 5.0, 2.0)
    assert "(1 - 0.25) * 1 + 0.25 * 5 = 2" in str(trace)


def test_the_gradient_of_a_sum_is_nothing():
    trace = explain("instance", X).backward()
    assert trace["dx"].values.abs().max() < 1e-12
    assert explain("instance", X, gradient="one")["dx"].values[0, 0].abs().min() > 0.01


def test_nan_is_shown_and_said():
    x = torch.tensor(X)
    x[0, 0, 0, 0] = torch.nan
    x[1, 1, 0, 0] = torch.inf
    trace = explain("instance", x).backward("one")
    assert any("1 NaN, 1 infinite of 16" in note for note in trace.notes)
    assert any("not checked" in note for note in trace.notes)
    assert "NaN" in str(trace)
    assert trace["var"].values[1, 0] == 6.5
    assert '"NaN"' in json.dumps(trace.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "x", "says"),
    [
        # torch divides by infinity, where the steps, from moments, have NaN
        (
            "rms",
            torch.tensor(X).index_fill(3, torch.tensor(0), torch.inf),
            "x has 8 infinite of 16",
        ),
        ("layer", torch.tensor(X, dtype=torch.float64) * 1e200, "var has 2 infinite of 2"),
    ],
)
def test_what_is_not_finite_is_not_the_layers_fault(name, x, says):
    with pytest.raises(ExplainError, match=f"{says}.*: replace NaN and infinities, or make"):
        explain(name, x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_nothing_is_recorded(mode):
    with mode():
        x = torch.randn(2, 3, 4, 5)
        trace = explain(momentnorm.SwitchableNorm2d(3), x, gradient="one")
    assert trace["dmean_weight"].shape == (3,)


def test_channels_last():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    layer = momentnorm.BatchNorm2d(3)
    assert torch.equal(explain(layer, x).y, explain(layer, x.contiguous()).y)


def test_a_name_for_each_layer():
    x = torch.rand(2, 4, 3, 3)
    for name in names():
        assert explain(name, x).y.shape == x.shape
    assert "BatchNorm1d" in explain("batch", x[:, :, 0, 0]).layer
    assert "SwitchableNorm1d" in explain("switchable", x[:, :, 0, 0]).layer
    assert explain("instance", x.double()).y.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: explain("instanse", X), ExplainError, "did you mean 'instance'"),
        (lambda: explain("zzz", X), ExplainError, "Known are instance, batch"),
        (lambda: explain("instance", [1.0, 2.0]), ExplainError, r"\(N, C, \*S\)"),
        (lambda: explain("instance", [[1.0, 2.0]]), ExplainError, "takes planes"),
        (lambda: explain("batch", torch.zeros(0, 2, 4, 4)), ExplainError, "is empty"),
        (lambda: explain("instance", "text"), ExplainError, "no tensor of numbers"),
        (lambda: explain("group", X, num_groups=3), ExplainError, "choose one of 1, 2"),
        (lambda: explain("batch", X, foo=1), ExplainError, "no option 'foo': its options are eps"),
        (lambda: explain("batch", X, weight=[1, 2, 3]), ExplainError, "weight has 2 values"),
        (lambda: explain("contrast", X, weight=1), ExplainError, "contrast has no weight"),
        (lambda: explain(nn.Linear(2, 2), X), ExplainError, "no explanation is known for Linear"),
        (lambda: explain(nn.InstanceNorm2d(2), X, eps=1), TypeError, "options make a layer"),
        (lambda: explain(3, X), TypeError, "takes a layer or a name, not int"),
        (lambda: explain("batch", X, gradient="two"), ExplainError, '"ones" or "one"'),
        (lambda: explain("batch", X, gradient=torch.ones(2)), ExplainError, "shape of the output"),
        (lambda: explain("batch", X)["variance"], KeyError, "this trace has x, weight"),
        (lambda: explain("batch", X).only("variance"), ExplainError, "this trace has x, weight"),
        (lambda: explain(momentnorm.BatchNorm2d(3), X), RuntimeError, "3"),
        (
            lambda: explain(momentnorm.InstanceNorm2d(2), torch.zeros(1, 2, 1, 1)),
            ValueError,
            "more than 1 spatial element",
        ),
    ],
)
def test_wrong_input_is_a_clear_line(call, error, says):
    with pytest.raises(error, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)


class Sloppy(momentnorm.InstanceNorm2d):
    """Not what its base class computes."""

    def forward(self, input):
        return super().forward(input) * 1.001


class Forgetful(momentnorm.BatchNorm2d):
    """The right output, and another update."""

    def forward(self, input):
        y = super().forward(input)
        self.running_mean.zero_()
        return y


def test_a_trace_of_something_else_is_refused():
    with pytest.raises(TraceMismatchError, match="do not lead to the output"):
        explain(Sloppy(2), X)
    layer = Forgetful(2)
    with pytest.raises(TraceMismatchError, match=r"running_mean .* moves otherwise"):
        explain(layer, X)
    assert torch.equal(explain(layer.eval(), X).y, explain(layer.eval(), X).y)


def test_a_wrong_backward_is_refused(monkeypatch):
    trace = explain("instance", torch.randn(2, 2, 3, 3))
    from momentnorm.explainer import planes_backward

    right = planes_backward.backward

    def wrong(*arguments):
        found = right(*arguments)
        found["x"] = found["x"] + 1e-5
        return found

    monkeypatch.setattr(planes_backward, "backward", wrong)
    with pytest.raises(TraceMismatchError, match="autograd through the steps"):
        trace.backward(torch.randn(2, 2, 3, 3))


def test_a_layer_of_ones_own():
    class ByHeight(nn.Module):
        def forward(self, x):
            return momentnorm.functional.pooled_norm(x, pool=momentnorm.Pool(1, None))

    with pytest.raises(ExplainError, match="ByHeight"):
        explain(ByHeight(), X)

    @explains(ByHeight)
    def by_height(layer, x, residual):
        return Planes(x, Pooled(momentnorm.Pool(1, None)))

    trace = explain(ByHeight(), X).backward("one")
    assert trace["pools"].values.tolist() == [[0, 0], [1, 1]]
    assert trace.checks[0].difference == 0.0


def test_an_explanation_without_a_backward_has_autograd():
    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    class Half(Explanation):
        def __init__(self, x):
            super().__init__()
            self.x = x

        def forward(self, steps, x):
            y = x / 2
            steps.add("Output", "y", y.to(self.x.dtype), ("N", "C", "L"), "y = x / 2", "x / 2")
            return y

    explains(Halved)(lambda layer, x, residual: Half(x))
    trace = explain(Halved(), torch.randn(2, 3, 4)).backward()
    assert torch.equal(trace["dx"].values, torch.full((2, 3, 4), 0.5, dtype=torch.float64))
    assert trace.part(BACKWARD)[0].name == "dx"


def test_the_package_is_the_function():
    import momentnorm.explainer.trace as trace_module

    assert momentnorm.explain("instance", X).y.shape == (2, 2, 2, 2)
    assert isinstance(momentnorm.explain("instance", X), trace_module.Trace)


def test_largest_difference():
    nan, one = torch.tensor([torch.nan]), torch.tensor([1.0])
    assert largest_difference(nan, nan) == 0.0
    assert largest_difference(nan, one) == float("inf")
    assert largest_difference(torch.tensor([0.0]), torch.tensor([-0.0])) > 0.0
    assert largest_difference(one, one.double()) == float("inf")
    assert largest_difference(one, one + 2**-23) == 2**-23
