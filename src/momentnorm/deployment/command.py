"""Command ``momentnorm export-check``: compare a model with its ONNX file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn

from ..support.arguments import Parser
from ..support.errors import UserError
from ..support.terminal import answer
from .check import export_check

if TYPE_CHECKING:
    from collections.abc import Sequence


PROGRAM = "momentnorm export-check"


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm export-check``: 0 if the file agrees, 1 if it does not, 2 for bad input."""
    return answer(PROGRAM, lambda: _compare(argv))


def _compare(argv: Sequence[str]) -> int:
    parser = Parser(
        prog=PROGRAM,
        description="Compare each normalization layer of a model with its part of an ONNX file.",
        epilog="Example: momentnorm export-check m.onnx --model net.py:make --shape 1,3,64,64",
    )
    parser.add_argument("file", metavar="FILE", help="the exported file, .onnx")
    parser.add_argument(
        "--model",
        metavar="WHERE:NAME",
        required=True,
        help="a Python file or module, and the name in it of a torch.nn.Module, or of a function "
        "that returns one, or a pair (module, example)",
    )
    parser.add_argument(
        "--shape",
        metavar="N,C,...",
        action="append",
        help="shape of a random input; once for each input; default: the file's own shapes",
    )
    parser.add_argument("--train", action="store_true", help="leave the model's mode as it is")
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "openvino", "reference"),
        default="onnxruntime",
        help="what runs the file; default onnxruntime",
    )
    parser.add_argument("--table", action="store_true", help="print a line for each layer too")
    given = parser.parse_args(argv)
    try:
        model, example = _model(given.model)
        if not given.train:
            model.eval()
        if given.shape or example is None:
            example = _random(given.file, given.shape)
        report = export_check(model, example, given.file, runtime=given.runtime)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(str(error).splitlines()[0]) from error
    print(report)
    if given.table:
        print("\n" + report.table())
    return 0 if report.ok else 1


def _model(where: str) -> tuple[nn.Module, Any]:
    """The model that an argument WHERE:NAME names, and its example if it has one.

    Raises:
        ValueError: there is no such file, module or name, or it is no model.
    """
    place, _, name = where.rpartition(":")
    if not place:
        raise ValueError(f"--model {where}: write it as net.py:make or package.net:make")
    found = getattr(_module(place), name, None)
    if found is None:
        raise ValueError(f"--model {where}: {place} has no {name}: check the name behind the colon")
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    model, example = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model {where} is {type(model).__name__}: it should be a torch.nn.Module, or a "
            "function that returns one, or a pair (module, example)"
        )
    return model, example


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"--model: {place} cannot be imported ({error})") from error
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"--model: there is no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _random(file: str, shapes: list[str] | None) -> tuple[torch.Tensor, ...]:
    """Random inputs of these shapes, or of those that the file declares."""
    sizes = [_sizes(shape) for shape in shapes] if shapes else _declared(file)
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in sizes)


def _sizes(shape: str) -> list[int]:
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ValueError(f"--shape {shape} is no list of sizes: write it as 1,3,64,64")
    return sizes


def _declared(file: str) -> list[list[int]]:
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{file}: not an ONNX file; export the model with torch.onnx") from error
    weights = {tensor.name for tensor in graph.initializer}
    shapes = []
    for value in graph.input:
        if value.name not in weights:
            dims = value.type.tensor_type.shape.dim
            if not all(dim.HasField("dim_value") for dim in dims):
                raise ValueError(
                    f"the input {value.name} of {file} takes several shapes: choose one by --shape"
                )
            shapes.append([dim.dim_value for dim in dims])
    return shapes
