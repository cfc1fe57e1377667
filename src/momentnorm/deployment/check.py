"""``momentnorm.export_check``: a model against the file that was exported from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .graph import NORMALIZATIONS, Graph
from .layers import Call, record
from .match import places, same_values
from .one_layer import LayerCheck
from .report import ExportReport, Finding, Row
from .runtimes import Runtime, reference, runner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .runtimes import Arrays

#: How far whole outputs may be from the model's: rounding grows from layer to layer.
_OUTPUTS = {np.dtype(np.float32): 5e-3, np.dtype(np.float16): 0.1, np.dtype(np.float64): 1e-5}


def export_check(
    model: nn.Module,
    example: Any,
    file: str | os.PathLike[str] | bytes | onnx.ModelProto,
    runtime: str | Runtime = "onnxruntime",
) -> ExportReport:
    """Compare each normalization layer of a model with its part of an exported ONNX file.

    The model and the file run once on the example. Each layer's part of the file is then cut out
    and run on the layer's own input and on hostile inputs: a mean of 1000 with a standard deviation
    of 0.01, constant planes, variances around eps, another batch, another size, and in float16
    planes whose sums leave its range. The layer in float64 is the truth. The file in float64
    decides whose fault a difference is: the file's formula, or the runtime's arithmetic.

    Layers are matched by the values of their inputs, so it does not matter which program wrote the
    file, how it names things, or of which operators it made a normalization. Compared are torch's
    BatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm, and their subclasses here.

    Args:
        model: the model, in the mode in which it is used. It is left as it was.
        example: its inputs, as for ``torch.onnx.export``: a tensor or a tuple.
        file: the path of the file, its bytes, or the loaded model.
        runtime: "onnxruntime", "openvino", "reference" (ONNX's own, in NumPy), or a function of an
            ``onnx.ModelProto`` and a dictionary of input arrays that returns the output arrays.

    Returns:
        the report. A file without fault has no finding.

    Raises:
        ValueError: a file that is no ONNX file; an example that does not fit its inputs; an unknown
            runtime.
        ImportError: a runtime that is not installed.

    >>> import onnx.parser
    >>> file = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
    ... g (float[2,3,4] x) => (float[2,3,4] y) <float[3] one = {1,1,1}, float[3] zero = {0,0,0}> {
    ...     y = InstanceNormalization <epsilon = 0.001> (x, one, zero)
    ... }''')
    >>> layer, x = torch.nn.InstanceNorm1d(3), torch.randn(2, 3, 4)
    >>> print(export_check(layer, x, file, runtime="reference"))
    1 normalization layer, 1 finding
    <BLANKLINE>
    export [eps] (the model): the layer has eps 1e-05, the file 0.001
        fix: set the operator's epsilon to 1e-05, or export again without changing it
    """
    run = runner(runtime)
    name = runtime if isinstance(runtime, str) else "the runtime"
    graph = Graph(_loaded(file))
    inputs = example if isinstance(example, tuple) else (example,)
    calls, outputs = record(model, inputs)
    feeds = _feeds(graph, inputs)
    starts = graph.starts()
    findings: list[Finding] = []
    values, results = _run_whole(graph, run, name, feeds, starts, findings)
    known = {**feeds, **values}
    rows = []
    used: list[tuple[str, str]] = []
    for call, place in zip(
        calls, places(calls, {n: known[n] for n in starts if n in known}), strict=True
    ):
        if place is None:
            row, missing = _without_place(call, graph, run, feeds, bool(findings))
            rows.append(row)
            findings += missing
            continue
        check = LayerCheck(call, place, graph, known, run, name)
        check.check()
        rows.append(check.row)
        findings += check.findings
        used.append((place.start, check.row.output))
    if not findings:
        findings += _elsewhere(outputs, results)
    return ExportReport(tuple(findings), tuple(rows), graph.opset, _others(graph, used))


def _loaded(file: Any) -> onnx.ModelProto:
    if isinstance(file, onnx.ModelProto):
        return file
    try:
        if isinstance(file, bytes):
            return onnx.load_from_string(file)
        return onnx.load(os.fspath(file))
    except OSError:
        raise
    except Exception as error:
        shown = "these bytes" if isinstance(file, bytes) else os.fspath(file)
        raise ValueError(
            f"{shown}: not an ONNX file ({str(error).splitlines()[0]}); export the model with "
            "torch.onnx.export"
        ) from error


def _feeds(graph: Graph, inputs: tuple[Any, ...]) -> Arrays:
    """The example's tensors as the inputs of the file."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(tensors) != len(graph.inputs):
        raise ValueError(
            f"the example has {len(tensors)} tensors, the file {len(graph.inputs)} inputs "
            f"({', '.join(value.name for value in graph.inputs)}): pass one for each"
        )
    feeds = {}
    for tensor, value in zip(tensors, graph.inputs, strict=True):
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = tensor.numpy(force=True).astype(kind)
    return feeds


def _run_whole(
    graph: Graph,
    run: Runtime,
    name: str,
    feeds: Arrays,
    names: list[str],
    findings: list[Finding],
) -> tuple[Arrays, list[NDArray[Any]]]:
    """What these tensors hold on the example, and the outputs of the file."""
    model = graph.exposing(names)
    try:
        found = list(run(model, feeds))
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        findings.append(
            Finding(
                "", "runs", "runtime", f"{name} does not run the file: {text}",
                "export with another opset, or use another runtime",
            )
        )  # fmt: skip
        try:
            found = list(reference(model, feeds))
        except Exception as second:
            raise ValueError(
                f"neither {name} nor ONNX's reference runs the file on the example: {text}; pass "
                "an example of the shape that the file declares"
            ) from second
    keys = [value.name for value in model.graph.output]
    values = dict(zip(keys, found, strict=True))
    return values, found[: len(graph.model.graph.output)]


def _without_place(
    call: Call, graph: Graph, run: Runtime, feeds: Arrays, doubtful: bool
) -> tuple[Row, list[Finding]]:
    """A layer whose input is nowhere in the file: folded into the layer before it, or missing."""
    names = [n for node in graph.nodes for n in node.output if n and n not in graph.constants]
    try:
        found = run(graph.exposing(names), feeds)
        there = {value.name for value in graph.model.graph.output}
        keys = [value.name for value in graph.model.graph.output]
        keys += [n for n in names if n not in there]
        values = dict(zip(keys, found, strict=True))
    except Exception:  # a tensor that cannot be an output: nothing can be said
        values = {}
    output = same_values(call, values, 5e-3)
    row = Row(call.name)
    if output is not None:
        producer = graph.producer.get(output)
        operator = graph.nodes[producer].op_type if producer is not None else "a constant"
        row.operator, row.output = f"folded into {operator}", output
        return row, []
    cause = " (an earlier finding may be the cause)" if doubtful else ""
    return row, [
        Finding(
            call.name, "missing", "export",
            f"no tensor of the file has the values of this layer's input or output{cause}",
            "export again; a layer that the exporter left out has to be in the model's forward",
        )
    ]  # fmt: skip


def _elsewhere(outputs: Any, results: list[NDArray[Any]]) -> list[Finding]:
    """Compare the outputs of the model and of the file, where every layer agrees."""
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    for i, (tensor, found) in enumerate(zip(tensors, results, strict=False)):
        wanted = tensor.detach().double()
        if not tensor.is_floating_point() or tuple(wanted.shape) != found.shape or not found.size:
            continue
        off = (torch.from_numpy(found.astype(np.float64)) - wanted).abs().max()
        relative = float(off / wanted.abs().max().clamp(min=1e-30))
        if not relative <= _OUTPUTS.get(found.dtype, 0.1):
            return [
                Finding(
                    "", "elsewhere", "export",
                    f"output {i} of the file is off by {relative:.0e} of its largest value, and "
                    "every normalization layer agrees on its own input",
                    "compare the other operators: convolutions, resizing, padding",
                )
            ]  # fmt: skip
    return []


def _others(graph: Graph, used: list[tuple[str, str]]) -> tuple[str, ...]:
    """Operators of the file that are a normalization, and of no layer that was compared."""
    covered: set[int] = set()
    for start, end in used:
        if end:
            covered.update(graph.region(start, [end])[0])
    return tuple(
        node.output[0]
        for i, node in enumerate(graph.nodes)
        if node.op_type in NORMALIZATIONS and i not in covered
    )
