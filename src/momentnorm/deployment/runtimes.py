"""Programs that run ONNX files: ONNX Runtime, OpenVINO, the reference of ONNX, or the caller's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Arrays: TypeAlias = dict[str, NDArray[Any]]

#: Runs a model on arrays by input name; the outputs, in the model's order.
Runtime: TypeAlias = Callable[["onnx.ModelProto", "Arrays"], "Sequence[NDArray[Any]]"]


def runner(name: str | Runtime) -> Runtime:
    """Return the function that runs models on this runtime.

    Raises:
        ValueError: there is no such runtime.
        ImportError: it is not installed.
    """
    if callable(name):
        return name
    known = {"onnxruntime": _onnxruntime, "openvino": _openvino, "reference": reference}
    if name not in known:
        raise ValueError(
            f"runtime={name!r} is none of {', '.join(known)}: choose one, or pass a function "
            "(model, inputs) -> outputs"
        )
    if name != "reference" and not find_spec(name):
        raise ImportError(f"runtime={name!r} is not installed: pip install {name}", name=name)
    return known[name]


def _onnxruntime(model: onnx.ModelProto, inputs: Arrays) -> Sequence[NDArray[Any]]:
    module: Any = importlib.import_module("onnxruntime")
    options = module.SessionOptions()
    options.log_severity_level = 3
    session = module.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Sequence[NDArray[Any]] = session.run(None, inputs)
    return found


def _openvino(model: onnx.ModelProto, inputs: Arrays) -> Sequence[NDArray[Any]]:
    module: Any = importlib.import_module("openvino")
    core = module.Core()
    # Its default on some processors is bfloat16, which is no matter of the file.
    compiled = core.compile_model(
        core.read_model(model.SerializeToString(), b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(inputs)
    return [np.array(found[output]) for output in compiled.outputs]


class GroupNormalization(OpRun):
    """The operator of opsets 18 (a scale for each group) and 21 (a scale for each channel)."""

    op_domain = ""

    def _run(
        self,
        x: NDArray[Any],
        scale: NDArray[Any],
        bias: NDArray[Any],
        num_groups: int | None = None,
        epsilon: float | None = None,
        stash_type: int | None = None,
    ) -> tuple[NDArray[Any]]:
        assert num_groups is not None
        assert epsilon is not None
        channels = x.shape[1]
        grouped = x.reshape(x.shape[0], num_groups, -1)
        wide = grouped.astype(np.float64)
        y = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + epsilon)
        per_channel = (
            np.repeat(v, channels // len(v)).reshape(-1, *(1 for _ in x.shape[2:]))
            for v in (scale, bias)
        )
        scale, bias = per_channel
        return ((y.reshape(x.shape) * scale + bias).astype(x.dtype),)


def reference(model: onnx.ModelProto, inputs: Arrays) -> Sequence[NDArray[Any]]:
    """Run a model by ONNX's reference, in NumPy, in the dtypes that the model names."""
    with np.errstate(all="ignore"):
        evaluator = ReferenceEvaluator(model, new_ops=[GroupNormalization])
        return [np.asarray(value) for value in evaluator.run(None, inputs)]
