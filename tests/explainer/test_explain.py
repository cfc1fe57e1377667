"""``momentnorm.explain``: values of the steps, errors, and explanations of one's own layers."""

from __future__ import annotations

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
    Trace,
    TraceMismatchError,
    explain,
    explains,
    names,
)
from momentnorm.explainer.example import X
from momentnorm.explainer.steps import BACKWARD
from momentnorm.explainer.values import largest_difference


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


def test_pools_show_which_planes_share():
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


def test_the_update_shows_its_arithmetic():
    trace = explain("batch", X, momentum=0.25, running_mean=[1.0, 2.0])
    step = trace["running_mean"]
    torch.testing.assert_close(step.values, torch.tensor([0.75 + 1.25, 1.5 + 0.25 * 14.5]))
    assert step.worked.numbers == (0.25, 1.0, 0.25, 5.0, 2.0)
    assert "(1 - 0.25) * 1 + 0.25 * 5 = 2" in str(trace)


def test_the_gradient_of_a_sum_is_zero():
    trace = explain("instance", X).backward()
    assert trace["dx"].values.abs().max() < 1e-12
    assert explain("instance", X, gradient="one")["dx"].values[0, 0].abs().min() > 0.01


def test_nan_is_shown_and_noted():
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
        # torch divides by infinity; the steps have NaN, because they start from moments
        (
            "rms",
            torch.tensor(X).index_fill(3, torch.tensor(0), torch.inf),
            "x has 8 infinite of 16",
        ),
        ("layer", torch.tensor(X, dtype=torch.float64) * 1e200, "var has 2 infinite of 2"),
    ],
)
def test_values_that_are_not_finite_are_refused(name, x, says):
    with pytest.raises(ExplainError, match=f"{says}.*: replace NaN and infinities, or make"):
        explain(name, x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_while_autograd_is_off(mode):
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
    """Layer that returns another output than its base class."""

    def forward(self, input):
        return super().forward(input) * 1.001


class Forgetful(momentnorm.BatchNorm2d):
    """Layer with the right output and a wrong running mean."""

    def forward(self, input):
        y = super().forward(input)
        self.running_mean.zero_()
        return y


def test_a_subclass_that_computes_something_else_is_refused():
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


def test_a_registered_layer_is_explained():
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


def test_an_explanation_without_a_backward_uses_autograd():
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


def test_explain_is_a_function_of_the_package():
    assert momentnorm.explain is explain
    assert isinstance(momentnorm.explain("instance", X), Trace)


def test_largest_difference():
    nan, one = torch.tensor([torch.nan]), torch.tensor([1.0])
    assert largest_difference(nan, nan) == 0.0
    assert largest_difference(nan, one) == float("inf")
    assert largest_difference(torch.tensor([0.0]), torch.tensor([-0.0])) > 0.0
    assert largest_difference(one, one.double()) == float("inf")
    assert largest_difference(one, one + 2**-23) == 2**-23
