"""ONNX files for tests: exported by torch, or made by hand of a few operators."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import momentnorm


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
