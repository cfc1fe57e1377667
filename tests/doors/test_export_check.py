"""``momentnorm.export_check``: silent on right files, and each known defect by its name."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import momentnorm

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from momentnorm import export_check  # noqa: E402
from momentnorm.cli import main  # noqa: E402


def filled(model):
    """The model with parameters and buffers that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def exported(model, x, **options):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), file, dynamo=False, **options)
    return file.getvalue()


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


# Files with one defect each, made by hand: x of (N, 4, 6, 6), one layer, y.


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def handmade(nodes, *tensors, opset=17, dtype=TensorProto.FLOAT, dims=("n", 4, "h", "w")):
    """A file of these operators, (type, inputs, output, attributes), from x to y."""
    made = [
        helper.make_node(kind, inputs.split(), [output], **attributes)
        for kind, inputs, output, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "handmade",
        [helper.make_tensor_value_info("x", dtype, list(dims))],
        [helper.make_tensor_value_info("y", dtype, None)],
        list(tensors),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def affine(layer, dtype=np.float32):
    return [
        tensor("scale", layer.weight.detach().numpy(), dtype),
        tensor("bias", layer.bias.detach().numpy(), dtype),
    ]


def running(layer):
    return [tensor("mean", layer.running_mean.numpy()), tensor("var", layer.running_var.numpy())]


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
INSTANCE = filled(momentnorm.InstanceNorm2d(4, affine=True))
TRACKED = filled(nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval())
BATCH = filled(momentnorm.BatchNorm2d(4).eval())
GROUP = filled(momentnorm.GroupNorm(2, 4))
RELU = filled(momentnorm.InstanceNorm2d(4, affine=True, activation="relu"))

NORM = ("InstanceNormalization", "x scale bias", "y", {"epsilon": 1e-5})
FROZEN = ("BatchNormalization", "x scale bias mean var", "y", {"epsilon": 1e-5})
VARIANCE = [
    ("ReduceMean", "x", "mean", {"axes": [2, 3]}),
    ("Sub", "x mean", "centred", {}),
    ("Mul", "centred centred", "squares", {}),
    ("ReduceMean", "squares", "var", {"axes": [2, 3]}),
]
SQUARES = [
    ("ReduceMean", "x", "mean", {"axes": [2, 3]}),
    ("Sub", "x mean", "centred", {}),
    ("Mul", "x x", "squares", {}),
    ("ReduceMean", "squares", "mean_square", {"axes": [2, 3]}),
    ("Mul", "mean mean", "square_mean", {}),
    ("Sub", "mean_square square_mean", "var", {}),
]
SUMS = [
    ("ReduceSum", "x axes", "sum", {}),
    ("Shape", "x", "sizes", {"start": 2}),
    ("ReduceProd", "sizes", "whole", {"keepdims": 0}),
    ("Cast", "whole", "count", {"to": TensorProto.FLOAT16}),
    ("Div", "sum count", "mean", {}),
    ("Sub", "x mean", "centred", {}),
    ("Mul", "centred centred", "squares", {}),
    ("ReduceSum", "squares axes", "sum_of_squares", {}),
    ("Div", "sum_of_squares count", "var", {}),
]
REST = [
    ("Add", "var eps", "var_eps", {}),
    ("Sqrt", "var_eps", "std", {}),
    ("Div", "centred std", "x_hat", {}),
    ("Mul", "x_hat gamma", "scaled", {}),
    ("Add", "scaled beta", "y", {}),
]


def columns(layer, dtype=np.float32):
    """gamma and beta of a formula made of small operators, and its eps."""
    shape = (4, 1, 1)
    return [
        tensor("gamma", layer.weight.detach().numpy().reshape(shape), dtype),
        tensor("beta", layer.bias.detach().numpy().reshape(shape), dtype),
        tensor("eps", 1e-5, dtype),
    ]


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


# Whole models.


def test_a_defect_upstream_is_one_finding():
    model = filled(nn.Sequential(INSTANCE, nn.Conv2d(4, 4, 3), BATCH, GROUP).eval())
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


def test_calls_that_are_not_compared():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = momentnorm.InstanceNorm2d(4)

        def forward(self, x):
            return self.norm(x, residual=x)

    report = export_check(Residual(), X, exported(Residual(), X))
    assert report.ok
    (row,) = report.rows
    assert (row.layer, row.operator) == ("norm", "not compared: called with more than x")


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


NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))

def pair():
    return make(), torch.randn(1, 3, 9, 9)

number = 3
"""


def command(capsys, *arguments):
    try:
        code = main(["export-check", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    out, error = capsys.readouterr()
    return code, out, error


def test_the_command(tmp_path, capsys):
    net, right, wrong = tmp_path / "net.py", tmp_path / "right.onnx", tmp_path / "wrong.onnx"
    net.write_text(NET)
    names = {}
    exec(NET, names)
    model = names["make"]().eval()
    free = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}}
    right.write_bytes(exported(model, torch.randn(1, 3, 8, 8)))
    wrong.write_bytes(exported(model[:1], torch.randn(1, 3, 8, 8), **free))

    agrees = "1 normalization layer, the file agrees\n"
    assert command(capsys, right, "--model", f"{net}:make") == (0, agrees, "")
    code, out, _ = command(capsys, wrong, "--model", f"{net}:pair", "--table")
    assert code == 1
    assert "export [missing] 1: no tensor" in out
    assert "layer  operator (opset" in out
    for arguments, message in (
        ([wrong, "--model", f"{net}:make"], "takes several shapes: choose one by --shape"),
        ([right, "--model", f"{net}:other"], "has no other: check the name"),
        ([right, "--model", f"{net}:number"], "it should be a torch.nn.Module"),
        ([right, "--model", "make"], "write it as net.py:make"),
        ([right, "--model", "missing.py:make"], "there is no file missing.py"),
        ([right, "--model", "no.such:make"], "no.such cannot be imported"),
        ([right, "--model", f"{net}:make", "--shape", "1,x"], "write it as 1,3,64,64"),
        ([net, "--model", f"{net}:make"], "not an ONNX file"),
        ([tmp_path / "no.onnx", "--model", f"{net}:make"], "No such file"),
        ([right], "the following arguments are required: --model"),
    ):
        code, out, error = command(capsys, *arguments)
        assert (code, out) == (2, "")
        assert error.count("\n") == 1
        assert message in error


def test_openvino():
    pytest.importorskip("openvino")
    model, x = network(), torch.randn(2, 3, 12, 12)
    assert export_check(model, x, exported(model, x), runtime="openvino").ok
