"""``momentnorm.export_check`` on whole models."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import momentnorm

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from momentnorm import export_check  # noqa: E402
from support.onnx_files import (  # noqa: E402
    BATCH,
    GROUP,
    INSTANCE,
    NORM,
    X,
    affine,
    exported,
    filled,
    handmade,
    tensor,
)


def network():
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            momentnorm.InstanceNorm2d(8, affine=True, activation="relu"),
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.BatchNorm2d(8, affine=False),
            momentnorm.GroupNorm(2, 8),
            nn.SiLU(),
            nn.LayerNorm([8, 8]),
            nn.InstanceNorm2d(8, track_running_stats=True),
        ).eval()
    )


@pytest.mark.parametrize("options", [{}, {"opset_version": 21}, {"do_constant_folding": False}])
def test_right_files_are_silent(options):
    model, x = network(), torch.randn(2, 3, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_check(model, x, exported(model, x, **options))
    assert str(report) == "6 normalization layers, the file agrees"
    assert report.ok
    assert bool(report)
    assert [row.layer for row in report.rows] == ["1", "3", "5", "6", "8", "9"]
    operators = [row.operator for row in report.rows]
    assert operators[0] == operators[3] == "InstanceNormalization"
    assert operators[1] in ("folded into Conv", "BatchNormalization")
    assert report.rows[0].errors["mean 1000, std 0.01"] < 0.1
    assert "1.0e-05" in report.table()
    assert not report.others
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_file_of_the_newer_exporter(tmp_path):
    pytest.importorskip("onnxscript")
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), momentnorm.GroupNorm(2, 4)).eval())
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    assert export_check(model, x, path).ok


def test_a_defect_upstream_is_one_finding():
    stack = nn.Sequential(INSTANCE, nn.Conv2d(4, 4, 3), BATCH, GROUP)
    model = filled(copy.deepcopy(stack).eval())
    file = onnx.load_from_string(exported(model, X))
    node = next(n for n in file.graph.node if n.op_type == "InstanceNormalization")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("epsilon", 10.0))
    report = export_check(model, X, file)
    assert [(finding.layer, finding.kind) for finding in report] == [("0", "eps")], str(report)


def test_a_folded_layer_that_changes_little():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)).eval()
    report = export_check(model, X, exported(model, X))
    assert report.ok
    assert report.rows[0].operator == "folded into Conv"


def test_a_new_batch_norm_that_was_exported_in_train_mode():
    """Its running statistics are 0 and 1: in evaluation the output is nearly the input."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)).eval()
    wrong = copy.deepcopy(model).train()
    file = exported(wrong, X, training=torch.onnx.TrainingMode.PRESERVE)
    report = export_check(model, X, file)
    assert [(finding.layer, finding.kind) for finding in report] == [("1", "train")], str(report)


def test_layers_that_are_missing_and_norms_that_are_not_layers():
    class Functional(nn.Module):
        def forward(self, x):
            return nn.functional.instance_norm(x).exp()

    plain = nn.Sequential(nn.Conv2d(4, 4, 3), Functional())
    report = export_check(plain, X, exported(plain, X))
    assert report.ok
    assert len(report.others) == 1
    longer = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8))
    shorter = nn.Sequential(*longer[:3])
    report = export_check(longer, X, exported(shorter, X))
    assert [(finding.layer, finding.kind) for finding in report] == [("3", "missing")]


def test_other_operators_that_differ():
    model = filled(nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)))
    file = onnx.load_from_string(exported(model, X))
    (weight,) = [t for t in file.graph.initializer if list(t.dims) == [4, 4, 3, 3]]
    weight.CopyFrom(tensor(weight.name, 2 * numpy_helper.to_array(weight)))
    report = export_check(model, X, file)
    assert [(finding.layer, finding.kind) for finding in report] == [("", "elsewhere")]


def test_a_batch_that_is_baked_in_between_layers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.Flatten())
    free = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    right = exported(model, X, **free)
    assert export_check(model, X, right).ok
    file = onnx.load_from_string(right)
    (flatten,) = [node for node in file.graph.node if node.op_type == "Flatten"]
    file.graph.initializer.append(tensor("sizes", [2, 64], np.int64))
    flatten.CopyFrom(helper.make_node("Reshape", [flatten.input[0], "sizes"], [flatten.output[0]]))
    report = export_check(model, X, file)
    assert [(finding.layer, finding.kind) for finding in report] == [("", "batch")]


def test_a_runtime_that_does_not_run_the_file():
    def refuses(model, inputs):
        raise RuntimeError("no such operator")

    report = export_check(INSTANCE, X, handmade([NORM], *affine(INSTANCE)), runtime=refuses)
    assert {finding.kind for finding in report} == {"runs"}
    assert "no such operator" in report.findings[0].message


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runtime": "tensorrt"}, ValueError, "choose one, or pass a function"),
        ({"file": b"no file"}, ValueError, "not an ONNX file"),
        ({"file": "missing.onnx"}, OSError, "missing.onnx"),
        ({"example": (X, X)}, ValueError, "has 2 tensors, the file 1 inputs"),
    ],
)
def test_bad_arguments(options, error, message):
    given = {"example": X, "file": handmade([NORM], *affine(INSTANCE)), **options}
    with pytest.raises(error, match=message):
        export_check(INSTANCE, **given)


def test_openvino():
    pytest.importorskip("openvino")
    model, x = network(), torch.randn(2, 3, 12, 12)
    assert export_check(model, x, exported(model, x), runtime="openvino").ok


# Layers without an operator of their own in ONNX.

MIXTURES = {
    "SwitchableNorm2d": lambda: momentnorm.SwitchableNorm2d(4),
    "without batch": lambda: momentnorm.SwitchableNorm2d(4, using_bn=False),
    "BatchInstanceNorm2d": lambda: momentnorm.BatchInstanceNorm2d(4),
    "FilterResponseNorm2d": lambda: momentnorm.FilterResponseNorm2d(4, learnable_eps=True),
    "EvoNorm2dS0": lambda: momentnorm.EvoNorm2dS0(4, groups=2),
    "EvoNorm2dB0": lambda: momentnorm.EvoNorm2dB0(4),
}


def with_mixture(make):
    """A model with this layer, and another one behind it."""
    return filled(nn.Sequential(nn.Conv2d(4, 4, 1), make(), nn.GroupNorm(2, 4)).eval())


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_agree(name):
    model = with_mixture(MIXTURES[name])
    report = export_check(model, X, exported(model, X))
    assert str(report) == "2 normalization layers, the file agrees"
    assert [row.layer for row in report.rows] == ["1", "2"]
    assert report.rows[0].errors["mean 1000, std 0.01"] < 1e-6


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("SwitchableNorm2d", ["size"]),  # the factor of its unbiased variance becomes a constant
        ("EvoNorm2dS0", []),
    ],
)
def test_mixtures_of_any_size(name, kinds):
    model = with_mixture(MIXTURES[name])
    free = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
    report = export_check(model, X, exported(model, X, **free))
    assert [finding.kind for finding in report] == kinds, str(report)


@pytest.mark.parametrize(
    ("name", "attribute", "value", "kind"),
    [
        ("SwitchableNorm2d", "eps", 0.1, "eps"),
        ("SwitchableNorm2d", "training", True, "train"),
        ("SwitchableNorm2d", "var_weight", nn.Parameter(torch.tensor([3.0, 0, 0])), "differs"),
        ("BatchInstanceNorm2d", "eps", 0.1, "eps"),
        ("EvoNorm2dS0", "bias", nn.Parameter(torch.zeros(4)), "affine"),
        ("EvoNorm2dB0", "training", True, "train"),
        ("FilterResponseNorm2d", "weight", nn.Parameter(torch.ones(4)), "affine"),
    ],
)
def test_a_mixture_that_was_exported_wrongly(name, attribute, value, kind):
    model = with_mixture(MIXTURES[name])
    wrong = with_mixture(MIXTURES[name])
    setattr(wrong[1], attribute, value)
    options = {"training": torch.onnx.TrainingMode.PRESERVE} if attribute == "training" else {}
    report = export_check(model, X, exported(wrong, X, **options))
    assert [(finding.layer, finding.kind) for finding in report] == [("1", kind)], str(report)


def test_ibn_is_compared_by_its_parts():
    model = with_mixture(lambda: momentnorm.IBN(4))
    report = export_check(model, X, exported(model, X))
    assert report.ok
    assert [row.layer for row in report.rows] == ["1.IN", "1.BN", "2"]
    assert report.rows[0].operator == "InstanceNormalization"


# Calls with more than x.


class Block(nn.Module):
    def __init__(self, norm, *operands, **options):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), norm
        self.skip = nn.Conv2d(4, 4, 1)
        self.operands, self.options = operands, options

    def forward(self, x):
        given = {
            "residual": self.skip(x),
            "mask": x[:, :1] > 0,
            "lengths": torch.tensor([[6, 4], [3, 6]]),
        }
        chosen = {name: given[name] for name in self.operands}
        return self.norm(self.conv(x), **chosen, **self.options)


@pytest.mark.parametrize("operands", [["residual"], ["mask"], ["residual", "mask"], ["lengths"]])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_calls_with_a_residual_or_a_mask(norm, operands):
    layer = (
        momentnorm.InstanceNorm2d(4, affine=True)
        if norm == "instance"
        else momentnorm.GroupNorm(2, 4)
    )
    model = filled(Block(layer, *operands, activation="relu").eval())
    report = export_check(model, X, exported(model, X))
    assert report.ok, str(report)
    assert "mean 1000, std 0.01" in report.rows[0].errors
    for left_out in operands:
        others = [name for name in operands if name != left_out]
        wrong = Block(layer, *others, activation="relu").eval()
        wrong.load_state_dict(model.state_dict())
        report = export_check(model, X, exported(wrong, X))
        (finding,) = report
        assert (finding.layer, finding.kind) == ("norm", "operand"), str(report)
        assert f"called with {left_out}=" in finding.message


def test_a_residual_that_is_the_input():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = momentnorm.InstanceNorm2d(4)

        def forward(self, x):
            return self.norm(x, residual=x)

    report = export_check(Own(), X, exported(Own(), X))
    assert report.ok
    (row,) = report.rows
    assert (row.layer, row.operator) == ("norm", "InstanceNormalization")
