"""Command ``momentnorm explain``."""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..support.arguments import Parser, add_outputs
from ..support.files import check_path
from ..support.packages import has
from ..support.printable import one_line
from ..support.terminal import answer, print_path
from . import example, files
from .call import explain
from .errors import ExplainError
from .formats import SUFFIXES, save
from .names import names
from .trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "momentnorm explain"

_DTYPES = ("float32", "float64", "bfloat16", "float16")

_EPILOG = f"""\
layers:
{textwrap.fill(", ".join(names()), 78, initial_indent="  ", subsequent_indent="  ")}
inputs:
  .npy and .json (nested lists) hold a feature map (N, C, ...);
  .csv holds one plane, with a row of numbers in each line;
  an image is one sample of 1 or 3 channels, with values from 0 to 1
examples:
  {PROGRAM} instance --example
  {PROGRAM} batch --input x.npy --backward one -o steps.html
  {PROGRAM} group --example --groups 1 --weight 2,1 --bias 0,5 --steps mean,var,y
  {PROGRAM} batch --example --eval --set running_mean=5,14 --set running_var=8,9
"""


def main(argv: Sequence[str]) -> int:
    """Run ``momentnorm explain``. The exit code is 0, or 2 for wrong input."""
    return answer(PROGRAM, lambda: _explain(_parsed(argv)))


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = Parser(
        prog=PROGRAM,
        description="Show what a normalization layer computes, step by step, on your numbers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("layer", metavar="LAYER", help="name of a layer, from the list below")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", type=Path, metavar="FILE", help="input file, of a kind listed below"
    )
    source.add_argument(
        "--example", action="store_true", help="use the 2 x 2 x 2 x 2 example that tutorials print"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, help="dtype of the input; default: that of the file"
    )
    _add_layer_options(parser)
    _add_output_options(parser)
    return parser.parse_args(argv)


def _add_layer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--eval", action="store_true", help="evaluation mode instead of training")
    parser.add_argument("--eps", type=float, metavar="E", help="added to the variance")
    parser.add_argument(
        "--weight", metavar="V,V,...", help="weight, gamma: one value for all, or a list"
    )
    parser.add_argument(
        "--bias", metavar="V,V,...", help="bias, beta: one value for all, or a list"
    )
    parser.add_argument(
        "--groups",
        type=int,
        metavar="G",
        help="number of groups, for group and evonorm_s0; default 2",
    )
    parser.add_argument(
        "--activation", metavar="NAME", help="activation after the norm: relu, leaky_relu, silu ..."
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set an argument, parameter or buffer of the layer; repeatable",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backward",
        nargs="?",
        const="ones",
        metavar="GRADIENT",
        help="show the backward too, for the sum of all outputs (ones, the default), the first "
        "output (one), or a gradient from a file",
    )
    parser.add_argument("--steps", metavar="NAME,...", help="show only these steps")
    parser.add_argument(
        "--precision", type=int, default=4, metavar="P", help="decimals of the numbers; default 4"
    )
    add_outputs(parser, SUFFIXES)


def _explain(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.precision <= 16:
        raise ExplainError(f"--precision {arguments.precision}: choose 0 to 16 digits")
    for path in arguments.out:
        check_path(path, SUFFIXES)
    x = torch.tensor(example.X) if arguments.example else files.read(arguments.input)
    if arguments.dtype:
        x = x.to(getattr(torch, arguments.dtype))
    options = _options(arguments)
    gradient = arguments.backward
    if gradient not in (None, "ones", "one"):
        gradient = files.read(Path(gradient))
    trace = _trace(arguments.layer, x, gradient, options)
    if arguments.example and arguments.layer == "instance" and not options:
        trace.checks += example.compare(trace)
    if arguments.steps:
        trace = trace.only(*(name.strip() for name in arguments.steps.split(",")))
    for path in arguments.out:
        print_path(save(trace, path, arguments.precision))
    if not arguments.out:
        _print(trace, arguments.precision)
    return 0


def _trace(layer: str, x: Any, gradient: Any, options: dict[str, Any]) -> Trace:
    """Trace of the call; errors of the layer itself become an :class:`ExplainError`."""
    try:
        return explain(layer, x, gradient=gradient, **options)
    except ExplainError:
        raise
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        # The layer refuses the input. NotImplementedError is a RuntimeError.
        raise ExplainError(f"{layer}: {one_line(error)}") from error


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of ``explain`` from those of the command."""
    found: dict[str, Any] = {}
    if arguments.eval:
        found["training"] = False
    for name, option in (("eps", "eps"), ("groups", "num_groups"), ("activation", "activation")):
        if getattr(arguments, name) is not None:
            found[option] = getattr(arguments, name)
    pairs = [(name, getattr(arguments, name)) for name in ("weight", "bias")]
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ExplainError(f"--set {text}: write NAME=VALUE, such as momentum=0.2")
        pairs.append((name.strip(), value))
    for name, value in pairs:
        if value is not None:
            found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    """Value of an option: a number, a list of numbers, True, False, None, or a word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        if text.replace("_", "").isalpha():
            return text
        raise ExplainError(f"{name}={text}: write a number, or numbers as 1,2.5") from None
    return list(value) if isinstance(value, tuple) else value


def _print(trace: Trace, precision: int) -> None:
    """Print the trace, with colours and in the width of the terminal if there is one."""
    if not sys.stdout.isatty():
        print(trace.text(precision=precision), end="")
        return
    width = shutil.get_terminal_size().columns
    if has("rich"):
        from rich.console import Console

        from .text import rich_lines

        console = Console()
        for line in rich_lines(trace, precision, width):
            console.print(line)
        return
    print(trace.text(precision=precision, width=width), end="")
