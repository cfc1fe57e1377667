"""check on any model: exceptions, refusals, wrappers, and shapes of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    every_library,
    noise,
    scaled,
    summary,
    two_blocks,
)


def test_other_exceptions_are_named():
    model = two_blocks(lambda: nn.InstanceNorm2d(8))
    model.head = nn.Conv2d(9, 2, 1)
    report = check(model, noise())
    assert summary(report) == [("error", "exception", "head")]
    assert isinstance(report.exception, RuntimeError)
    with pytest.raises(RuntimeError, match=r"\[exception\] head: Conv2d raised") as raised:
        report.raise_if_errors()
    assert raised.value.__cause__ is report.exception
    check(nn.InstanceNorm2d(3), noise()).raise_if_errors()


@every_library
def test_an_exception_of_a_layer_that_no_rule_knows(library):
    (finding,) = check(library.InstanceNorm2d(3), noise(3))
    assert (finding.severity, finding.kind) == ("error", "exception")
    assert "for an input of (3,), torch.float32 on cpu, it raised ValueError" in finding.message
    (finding,) = check(library.BatchNorm2d(3), noise().double())
    assert "its parameters are torch.float32 on cpu" in finding.fix


def test_an_exception_of_the_model_itself():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("nothing")

    report = check(Broken(), noise())
    assert summary(report) == [("error", "exception", "")]
    assert "(the model): Broken raised KeyError" in str(report)


def test_refused_models():
    with pytest.raises(TypeError, match="not function"):
        check(noise, noise())
    with pytest.raises(ValueError, match=r"layer '0', LazyInstanceNorm2d.*run the model once"):
        check(nn.Sequential(nn.LazyInstanceNorm2d(affine=True)), noise())


@pytest.mark.filterwarnings("ignore")
def test_a_script_cannot_be_checked():
    with pytest.raises(TypeError, match="TorchScript"):
        check(torch.jit.trace(nn.InstanceNorm2d(3), noise()), noise())


TRACK = {"track_running_stats": True}


LAYERS = {
    "InstanceNorm": ({}, {"affine": True}, TRACK, {"affine": True, **TRACK}),
    "BatchNorm": ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}),
}


SHAPES = """; 4; 4 4; 1 4; 2 4; 2 4 1; 2 4 2; 2 4 4; 4 1 1; 2 4 1 1; 2 4 2 1; 2 4 4 4; 1 4 4 4;
    2 6 4 4; 0 4 4 4; 2 0 4 4; 2 4 0 4; 2 4 1 1 1; 2 4 4 4 4"""


def _layers(library):
    for name, options in LAYERS.items():
        for dimensions in (1, 2, 3):
            for option in options:
                yield getattr(library, f"{name}{dimensions}d")(4, **option)
    yield from (library.GroupNorm(groups, 4) for groups in (1, 2, 4))
    yield from (library.LayerNorm(4), library.LayerNorm((4, 4)), library.RMSNorm(4))
    if library is momentnorm:
        yield from (momentnorm.SwitchableNorm1d(4), momentnorm.SwitchableNorm2d(4))
        yield from (momentnorm.BatchInstanceNorm2d(4), momentnorm.IBN(4))


@pytest.mark.filterwarnings("ignore")  # torch warns about shapes that it reads as others
@every_library
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_exactly_the_layers_that_raise_are_errors(dtype, training, library):
    for layer in _layers(library):
        layer.train(training)
        for shape in SHAPES.split(";"):
            x = torch.randn([int(size) for size in shape.split()]).to(dtype)
            report = check(layer, x)
            raised = None
            try:
                with torch.no_grad():
                    layer(x)
            except Exception as error:
                raised = error
            assert type(report.exception) is type(raised), (layer, shape)
            kinds = {finding.kind for finding in report if finding.severity == "error"}
            if raised is not None:
                assert kinds, (layer, shape)
            elif x.numel():  # groups and rows of one value do not raise
                assert kinds <= {"few-elements"}, (layer, shape)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # raised by torch while the compiler loads
def test_compiled_models_are_checked():
    model = two_blocks(lambda: nn.InstanceNorm2d(8))
    scaled(1e-3)(model)
    expected = [("warning", "eps", "body.1")]
    assert summary(check(torch.compile(model), noise())) == expected
    compiled = []
    backend = lambda graph, _: compiled.append(graph) or graph  # noqa: E731
    model.body = torch.compile(model.body, backend=backend)
    assert summary(check(model, noise())) == expected
    model.compile(backend=backend)
    assert summary(check(model, noise())) == expected
    assert not compiled
    assert summary(check(nn.DataParallel(model), noise())) == expected


def test_keywords_and_outputs_of_any_kind():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, pair, *, scale):
            image, _ = pair
            return {"y": [self.norm(input=image * scale)]}

    assert summary(check(Keywords(), (noise(), None), scale=1.0)) == []
    assert summary(check(Keywords(), (noise(), None), scale=1e-4)) == [("warning", "eps", "norm")]


def test_a_layer_norm_with_its_own_forward_is_not_checked():
    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    assert summary(check(two_blocks(lambda: ChannelsFirst(8)), noise())) == []
    # The rows of a plain LayerNorm would be constant.
    assert summary(check(ChannelsFirst(8), noise(2, 8, 8, 1).expand(2, 8, 8, 8))) == []
