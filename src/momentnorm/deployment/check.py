"""``momentnorm.export_check``: compare a model with the file that was exported from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .calls import Call, record
from .graph import NORMALIZATIONS, Graph
from .inputs import other_batch, other_size
from .match import Place, by_order, by_values, same_values
from .one_layer import LayerCheck
from .region import Region
from .report import ExportReport, Finding, Row, baked_in
from .runtimes import Runtime, reference, runner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .runtimes import Arrays

#: Bounds of the relative difference of whole outputs: rounding grows from layer to layer.
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

    Layers are matched by the values of their inputs. So any program may have written the file, with
    any names and any operators. Compared are torch's BatchNorm, InstanceNorm, GroupNorm, LayerNorm,
    RMSNorm and their subclasses here, SwitchableNorm, BatchInstanceNorm2d, FilterResponseNorm2d,
    EvoNorm and the parts of IBN.

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
    inputs = example if isinstance(example, tuple) else (example,)
    graph = Graph(_loaded(file))
    feeds = _feeds(graph, inputs)
    calls, outputs = record(model, inputs)
    comparison = _Comparison(graph, run, name, feeds, calls)
    comparison.compare()
    findings = comparison.findings
    if not findings:
        findings += _elsewhere(outputs, comparison.results)
    if not findings:
        findings += _other_shapes(model, inputs, graph, run, name)
    return ExportReport(tuple(findings), tuple(comparison.rows), graph.opset, comparison.others())


class _Comparison:
    """Comparison of the calls of a model's layers with a file, one after the other.

    After a layer that differs, the file runs on with the model's values. So the layers behind it
    are recognized, and one defect is one finding.
    """

    def __init__(
        self, graph: Graph, run: Runtime, name: str, feeds: Arrays, calls: list[Call]
    ) -> None:
        self.graph, self.run, self.name, self.feeds = graph, run, name, feeds
        self.calls = calls
        self.starts = graph.starts()
        #: Tensors whose values on the example are kept.
        self.exposed = list(self.starts)
        if any(call.options for call in calls):
            self.exposed = list(dict.fromkeys([*self.starts, *graph.operands()]))
        self.findings: list[Finding] = []
        self.rows: list[Row] = []
        self.fixed: Arrays = {}
        self.regions: list[tuple[str, str]] = []
        self.values: Arrays = {}
        #: Outputs of the unchanged file.
        self.results = self._run(self.exposed)

    def compare(self) -> None:
        """Compare every call, and fill the rows and the findings."""
        behind = None
        for i, call in enumerate(self.calls):
            starting = {
                name: self.values[name]
                for name in self.starts
                if name in self.values and self.values[name].dtype.kind == "f"
            }
            place = by_values(call, starting, i / len(self.calls))
            folded = None if place is not None else self._folded(call)
            if folded is not None:
                self.rows.append(folded)
                continue
            if place is None and not call.frozen:  # a frozen layer may be folded
                place = by_order(call, starting, behind)
            if place is None:
                self.rows.append(Row(call.name))
                self.findings.append(_missing(call))
                continue
            behind = place.start
            self._compare_one(call, place)

    def _compare_one(self, call: Call, place: Place) -> None:
        region = Region(call, place, self.graph, self.values)
        check = LayerCheck(region, self.run, self.name)
        check.check()
        if check.findings and call.frozen and check.row.operator != "BatchNormalization":
            # A folded layer that changes little: its output in the file looks like its input.
            folded = self._folded(call, 1e-4)
            if folded is not None:
                self.rows.append(folded)
                return
        self.rows.append(check.row)
        self.findings += check.findings
        end = check.row.output
        if end:
            self.regions.append((place.start, end))
        if end and check.findings:
            self.fixed[end] = place.from_model(call.output).astype(region.dtype_of(end))
            self._run(self.exposed)

    def _run(self, names: list[str]) -> list[NDArray[Any]]:
        """Run the file on the example, keep the values of these tensors, and return its outputs."""
        model = self.graph.exposing(names, self.fixed)
        try:
            found = list(self.run(model, self.feeds))
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            if not any(finding.kind == "runs" for finding in self.findings):
                self.findings.append(_does_not_run(self.name, text))
            try:
                found = list(reference(model, self.feeds))
            except Exception as second:
                raise ValueError(
                    f"neither {self.name} nor ONNX's reference runs the file on the example: "
                    f"{text}; pass an example of the shape that the file declares"
                ) from second
        keys = [value.name for value in model.graph.output]
        self.values = {**self.feeds, **dict(zip(keys, found, strict=True))}
        return found[: len(self.graph.model.graph.output)]

    def _folded(self, call: Call, tolerance: float = 5e-3) -> Row | None:
        """Return a row for a layer whose output is a tensor of the file, and whose input is not."""
        nodes = self.graph.nodes
        names = [n for node in nodes for n in node.output if n and n not in self.graph.constants]
        model = self.graph.exposing(names, self.fixed)
        try:
            found = self.run(model, self.feeds)
        except Exception:  # a tensor of the file that cannot be an output
            return None
        keys = [value.name for value in model.graph.output]
        output = same_values(call, dict(zip(keys, found, strict=True)), tolerance)
        if output is None:
            return None
        producer = self.graph.producer.get(output)
        operator = "a constant" if producer is None else nodes[producer].op_type
        how = "folded into" if call.frozen else "compared on the example alone:"
        return Row(call.name, f"{how} {operator}", output=output)

    def others(self) -> tuple[str, ...]:
        """Outputs of the file's normalizing operators that belong to no compared layer."""
        covered: set[int] = set()
        for start, end in self.regions:
            covered.update(self.graph.region(start, [end])[0])
        return tuple(
            node.output[0]
            for i, node in enumerate(self.graph.nodes)
            if node.op_type in NORMALIZATIONS and i not in covered
        )


def _does_not_run(name: str, text: str) -> Finding:
    return Finding(
        "",
        "runs",
        "runtime",
        f"{name} does not run the file: {text}",
        "export with another opset, or use another runtime",
    )


def _missing(call: Call) -> Finding:
    return Finding(
        call.name,
        "missing",
        "export",
        "no tensor of the file has the values of this layer's input or output",
        "export again; a layer that the exporter left out has to be in the model's forward",
    )


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
    """Return the example's tensors by the names of the file's inputs."""
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


def _other_shapes(
    model: nn.Module, inputs: tuple[Any, ...], graph: Graph, run: Runtime, name: str
) -> list[Finding]:
    """Run the whole file with another batch and another size, where it declares any."""
    any_batch, any_size = graph.dynamic()
    findings = []
    for declared, kind, change in (
        (any_batch, "batch", other_batch),
        (any_size, "size", other_size),
    ):
        if not declared:
            continue
        changed = tree_map_only(Tensor, change, inputs)
        try:
            _, outputs = record(model, changed)
        except (RuntimeError, ValueError, IndexError):  # the model has a fixed size
            continue
        try:
            found = list(run(graph.model, _feeds(graph, changed)))
        except Exception as error:
            problem = f"{name} fails: {' '.join(str(error).split())[:120]}"
        else:
            if not _elsewhere(outputs, found):
                continue
            problem = "its outputs differ from the model's"
        findings.append(baked_in("", kind, problem))
    return findings


def _elsewhere(outputs: Any, results: list[NDArray[Any]]) -> list[Finding]:
    """Compare the outputs of the model and of the file after all layers agree."""
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    for i, (tensor, found) in enumerate(zip(tensors, results, strict=False)):
        wanted = tensor.detach().cpu().double()
        if not tensor.is_floating_point() or not wanted.numel():
            continue
        if tuple(wanted.shape) != found.shape:
            return [_differs(i, f"has shape {found.shape} in place of {tuple(wanted.shape)}")]
        off = (torch.from_numpy(found.astype(np.float64)) - wanted).abs().max()
        relative = float(off / wanted.abs().max().clamp(min=1e-30))
        if not relative <= _OUTPUTS.get(found.dtype, 0.1):
            return [_differs(i, f"is off by {relative:.0e} of its largest value")]
    return []


def _differs(index: int, text: str) -> Finding:
    return Finding(
        "",
        "elsewhere",
        "export",
        f"output {index} of the file {text}, and every normalization layer agrees on its own input",
        "compare the other operators: convolutions, resizing, padding",
    )
