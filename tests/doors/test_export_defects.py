"""``momentnorm.export_check`` on files made by hand: each known defect has its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402

from momentnorm import export_check  # noqa: E402
from support.onnx_files import (  # noqa: E402
    BATCH,
    FROZEN,
    GROUP,
    INSTANCE,
    NORM,
    RELU,
    REST,
    SQUARES,
    SUMS,
    TRACKED,
    VARIANCE,
    X,
    affine,
    columns,
    exported,
    filled,
    handmade,
    running,
    tensor,
)


def batch_folded():
    """Instance Normalization as Batch Normalization of one sample, whose batch is a constant."""
    return handmade(
        [
            ("Reshape", "x one", "folded", {}),
            ("InstanceNormalization", "folded scale8 bias8", "normalized", {"epsilon": 1e-5}),
            ("Shape", "x", "sizes", {}),
            ("Reshape", "normalized sizes", "y", {}),
        ],
        tensor("one", [1, 8, -1], np.int64),
        tensor("scale8", INSTANCE.weight.detach().repeat(2).numpy()),
        tensor("bias8", INSTANCE.bias.detach().repeat(2).numpy()),
    )


def size_folded():
    return handmade(
        [
            ("Reshape", "x flat", "rows", {}),
            ("InstanceNormalization", "rows scale bias", "normalized", {"epsilon": 1e-5}),
            ("Reshape", "normalized back", "y", {}),
        ],
        *affine(INSTANCE),
        tensor("flat", [0, 4, 36], np.int64),
        tensor("back", [0, 4, 6, 6], np.int64),
    )


def grouped(eps=1e-5, groups=2):
    """Group Normalization as torch exports it."""
    return handmade(
        [
            ("Reshape", "x rows", "grouped", {}),
            ("InstanceNormalization", "grouped ones zeros", "normalized", {"epsilon": eps}),
            ("Shape", "x", "sizes", {}),
            ("Reshape", "normalized sizes", "x_hat", {}),
            ("Mul", "x_hat gamma", "scaled", {}),
            ("Add", "scaled beta", "y", {}),
        ],
        tensor("rows", [0, groups, -1], np.int64),
        tensor("ones", [1] * groups),
        tensor("zeros", [0] * groups),
        *columns(GROUP),
    )


def group_operator(opset, scale, bias):
    node = ("GroupNormalization", "x scale bias", "y", {"epsilon": 1e-5, "num_groups": 2})
    return handmade([node], tensor("scale", scale), tensor("bias", bias), opset=opset)


PER_GROUP = {"scale": GROUP.weight[::2].detach(), "bias": GROUP.bias[::2].detach()}
EPS = ("InstanceNormalization", "x scale bias", "y", {"epsilon": 1e-3})
TRAIN = ("BatchNormalization", "x scale bias mean var", "y m v", {"training_mode": 1})

#: name: the layer, the file, kind and fault of the finding, and a part of its message.
DEFECTS = {
    "a scale for each group": (
        GROUP, lambda: group_operator(18, **PER_GROUP), "scale", "each of the 2 groups",
    ),
    "eps": (INSTANCE, lambda: handmade([EPS], *affine(INSTANCE)), "eps", "1e-05, the file 0.001"),
    "eps in a formula": (
        INSTANCE,
        lambda: handmade(
            VARIANCE + REST, *columns(INSTANCE)[:2], tensor("eps", 1e-6)
        ),
        "eps",
        "the file 1e-06",
    ),
    "eps of groups": (GROUP, lambda: grouped(eps=1e-3), "eps", "the file 0.001"),
    "groups": (GROUP, lambda: grouped(groups=4), "groups", "2 groups, the file 4"),
    "running statistics dropped": (
        TRACKED, lambda: handmade([NORM], *affine(TRACKED)), "statistics", "of each channel of",
    ),
    "running statistics of a batch norm dropped": (
        BATCH, lambda: handmade([NORM], *affine(BATCH)), "statistics", "its running statistics",
    ),
    "running statistics used": (
        filled(nn.BatchNorm2d(4)).train(),
        lambda: handmade([FROZEN], *affine(BATCH), *running(BATCH)),
        "statistics",
        "the file the running ones",
    ),
    "constants used": (
        INSTANCE,
        lambda: handmade([FROZEN], *affine(INSTANCE), *running(BATCH)),
        "statistics",
        "the file constants",
    ),
    "statistics of the batch": (
        INSTANCE,
        lambda: handmade(VARIANCE_OF_BATCH, *columns(INSTANCE)),
        "statistics",
        "over each channel of the batch",
    ),
    "activation left out": (
        RELU, lambda: handmade([NORM], *affine(RELU)), "activation", "ends with relu",
    ),
    "bias left out": (
        INSTANCE,
        lambda: handmade([NORM], *affine(INSTANCE)[:1], tensor("bias", [0] * 4)),
        "affine",
        "has a bias, the file leaves it out",
    ),
    "unbiased variance": (
        INSTANCE,
        lambda: handmade(
            [
                *VARIANCE[:-1],
                ("ReduceMean", "squares", "biased", {"axes": [2, 3]}),
                ("Mul", "biased bessel", "var", {}),
                *REST,
            ],
            *columns(INSTANCE),
            tensor("bessel", 36 / 35),
        ),
        "variance",
        "divides by the unbiased variance",
    ),
    "batch folded": (INSTANCE, batch_folded, "batch", "any batch"),
    "size folded": (INSTANCE, size_folded, "size", "any size"),
    "something else": (
        INSTANCE,
        lambda: handmade(
            [*VARIANCE, *REST[:1], ("Div", "centred var_eps", "x_hat", {}), *REST[3:]],
            *columns(INSTANCE),
        ),
        "differs",
        "no known change",
    ),
}  # fmt: skip
VARIANCE_OF_BATCH = [
    ("ReduceMean", "x", "mean", {"axes": [0, 2, 3]}),
    ("Sub", "x mean", "centred", {}),
    ("Mul", "centred centred", "squares", {}),
    ("ReduceMean", "squares", "var", {"axes": [0, 2, 3]}),
    *REST,
]


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_has_its_name(name):
    layer, make, kind, message = DEFECTS[name]
    report = export_check(nn.Sequential(layer), X, make())
    assert [finding.kind for finding in report] == [kind], str(report)
    (finding,) = report
    assert finding.fault == "export"
    assert finding.layer == "0"
    assert message in finding.message
    assert report.of(kind) == (finding,)
    assert not report.ok


RIGHT = {
    "an operator": (INSTANCE, lambda: handmade([NORM], *affine(INSTANCE))),
    "frozen": (BATCH, lambda: handmade([FROZEN], *affine(BATCH), *running(BATCH))),
    "a formula": (INSTANCE, lambda: handmade(VARIANCE + REST, *columns(INSTANCE))),
    "groups": (GROUP, grouped),
    "an activation": (
        RELU,
        lambda: handmade(
            [(*NORM[:2], "z", NORM[3]), ("Relu", "z", "y", {})], *affine(RELU)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_files_made_by_hand_are_silent(name):
    layer, make = RIGHT[name]
    assert str(export_check(layer, X, make())) == "1 normalization layer, the file agrees"


def test_the_operator_of_groups():
    """ONNX defines it by E[x^2] - E[x]^2, and ONNX Runtime 1.32 follows: not here."""
    file = group_operator(21, GROUP.weight.detach(), GROUP.bias.detach())
    assert export_check(GROUP, X, file, runtime="reference").ok


def test_channels_last_files():
    """A file whose data is (N, H, W, C) behind a transposition, as converters write it."""
    axes = {"axes": [1, 2]}
    nodes = [("Transpose", "x", "last", {"perm": [0, 2, 3, 1]})]
    nodes += [(kind, inputs.replace("x", "last") if "x_hat" not in inputs else inputs, output,
               axes if kind == "ReduceMean" else options)
              for kind, inputs, output, options in VARIANCE + REST[:-1]]  # fmt: skip
    nodes += [("Add", "scaled beta", "z", {}), ("Transpose", "z", "y", {"perm": [0, 3, 1, 2]})]
    rows = [tensor(n, getattr(INSTANCE, p).detach().numpy())
            for n, p in (("gamma", "weight"), ("beta", "bias"))]  # fmt: skip
    file = handmade(nodes, *rows, tensor("eps", 1e-5))
    assert export_check(INSTANCE, X, file).ok
    wrong = handmade(nodes, *rows, tensor("eps", 1e-3))
    assert [finding.kind for finding in export_check(INSTANCE, X, wrong)] == ["eps"]


@pytest.mark.parametrize("opset", [14, 17])
def test_layer_norms_and_rms_norms(opset):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), torch.randn(2, 5, 6)
    report = export_check(filled(model), x, exported(model, x, opset_version=opset))
    assert report.ok
    layer = filled(nn.RMSNorm(6))  # its eps is that of float32
    nodes = [
        ("Pow", "x two", "squares", {}),
        ("ReduceMean", "squares", "mean", {"axes": [-1]}),
        ("Add", "mean eps", "var_eps", {}),
        ("Sqrt", "var_eps", "std", {}),
        ("Reciprocal", "std", "inverse", {}),
        ("Mul", "x inverse", "x_hat", {}),
        ("Mul", "x_hat gamma", "y", {}),
    ]
    constants = [tensor("two", 2), tensor("gamma", layer.weight.detach().numpy())]
    right = handmade(nodes, *constants, tensor("eps", torch.finfo(torch.float32).eps))
    assert export_check(layer, X, right).ok
    wrong = handmade(nodes, *constants, tensor("eps", 1e-5))
    assert [finding.kind for finding in export_check(layer, X, wrong)] == ["eps"]


def test_train_mode_of_the_file():
    nodes = [("BatchNormalization", "x scale bias mean var", "y", {"training_mode": 1})]
    file = handmade(nodes, *affine(BATCH), *running(BATCH))
    file.graph.node[0].output.extend(["m", "v"])
    report = export_check(BATCH, X, file, runtime="reference")
    assert [finding.kind for finding in report] == ["train"]
    assert "call model.eval()" in report.findings[0].fix
    trained = filled(nn.BatchNorm2d(4)).train()
    before = trained.running_mean.clone()
    report = export_check(trained, X, file, runtime="reference")
    assert torch.equal(trained.running_mean, before)
    assert [finding.kind for finding in report] == ["train"]
    assert "depends on the others" in report.findings[0].message


def test_a_scale_that_the_opset_does_not_have():
    file = group_operator(18, GROUP.weight.detach(), GROUP.bias.detach())
    report = export_check(GROUP, X, file, runtime="reference")
    assert [finding.kind for finding in report] == ["scale"]
    assert report.rows[0].scale == (4,)


# Digits: the formula is right, and its arithmetic is not.


def test_squares_that_cancel():
    file = handmade(SQUARES + REST, *columns(INSTANCE))
    report = export_check(INSTANCE, X, file)
    (finding,) = report
    assert finding.kind in ("digits", "overflow")
    assert finding.fault == "export"
    assert "E[x^2] - E[x]^2" in finding.message


def test_sums_that_overflow_float16():
    half = handmade(
        SUMS + REST,
        *columns(INSTANCE, np.float16),
        tensor("axes", [2, 3], np.int64),
        dtype=TensorProto.FLOAT16,
    )
    report = export_check(INSTANCE, X, half)
    (finding,) = report
    assert (finding.kind, finding.fault) == ("overflow", "export")
    assert "65,504" in finding.message
    assert "keep the normalization in float32" in finding.fix
    operator = handmade([NORM], *affine(INSTANCE, np.float16), dtype=TensorProto.FLOAT16)
    assert export_check(INSTANCE, X, operator).ok


def test_a_runtime_that_loses_digits():
    def sloppy(model, inputs):
        from momentnorm.deployment.runtimes import reference

        found = reference(model, inputs)
        large = any(np.abs(value).max() > 200 for value in inputs.values())
        return [value + 5 if large else value for value in found]

    report = export_check(INSTANCE, X, handmade([NORM], *affine(INSTANCE)), runtime=sloppy)
    (finding,) = report
    assert (finding.kind, finding.fault) == ("digits", "runtime")


def test_a_layer_that_loses_digits_itself():
    class Squares(nn.InstanceNorm2d):
        def forward(self, input):
            mean = input.mean((2, 3), keepdim=True)
            var = input.square().mean((2, 3), keepdim=True) - mean.square()
            return (input - mean) / (var + self.eps).sqrt()

    unit = [tensor("gamma", np.ones((4, 1, 1))), tensor("beta", np.zeros((4, 1, 1)))]
    file = handmade(SQUARES + REST, *unit, tensor("eps", 1e-5))
    (finding,) = export_check(Squares(4), X, file)
    assert finding.fault == "model"
