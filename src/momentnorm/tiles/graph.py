"""The model as a graph of ATen operators, with the size of every map in it.

``torch.export`` records the model at the size that is asked for; the example takes no memory, since
it is one number that is expanded. So every padding, crop and scale in the graph is a plain number.

A *map* is a tensor (N, C, *S) that depends on the image: it is computed tile by tile. Every other
tensor is *small*: a parameter, a statistic of a whole map, or a function of these. A *barrier* is a
node that needs statistics of a whole map: a norm, or a mean over all pixels.
"""

from __future__ import annotations

import logging
import math
import operator
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_arg

from .errors import TilesError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rules.base import Rule

#: How many problems an error lists.
PROBLEMS = 8


@dataclass(eq=False)
class Node:
    """One tensor of the graph, or one tuple of tensors, and how it is computed."""

    index: int
    name: str
    target: Any  # an OpOverload, operator.getitem, or None for the image and for constants
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: str  # the module that computes it, such as "encoder.0.conv"
    shape: torch.Size | None
    dtype: torch.dtype | None
    inputs: tuple[Node, ...] = ()
    rule: Rule | None = None  # maps and barriers have one
    is_tuple: bool = False  # shape and dtype are those of the first tensor
    is_map: bool = False
    is_flat: bool = False  # the graph has its spatial axes as one, (N, C, prod(S))
    size: tuple[int, ...] = ()  # of a map: its spatial axes S
    level: int = 0  # how many passes over the image come before it can be computed
    value: Tensor | None = None  # of a constant
    users: list[Node] = field(default_factory=list)

    @property
    def operator(self) -> str:
        """The operator's name in ATen, such as "conv2d"."""
        if self.target is operator.getitem:
            return "getitem"
        return "" if self.target is None else str(self.target._schema.name).partition("::")[2]

    @property
    def is_barrier(self) -> bool:
        """Whether it needs the moments of a whole map."""
        return self.rule is not None and self.rule.measured(self) is not None

    @property
    def channels(self) -> tuple[int, int]:
        """N and C of a map."""
        assert self.shape is not None
        return self.shape[0], self.shape[1]

    def bytes(self) -> int:
        """Bytes of the whole map."""
        assert self.dtype is not None
        return math.prod((*self.channels, *self.size)) * self.dtype.itemsize

    @cached_property
    def bound(self) -> dict[str, Any]:
        """The operator's arguments by the names of its schema, defaults included."""
        values = {a.name: a.default_value for a in self.target._schema.arguments}
        values |= dict(zip(values, self.args, strict=False))
        return values | self.kwargs

    def __repr__(self) -> str:
        return f"<{self.name}: {self.operator} at {self.place or 'the model'}>"


@dataclass(eq=False)
class Graph:
    """The nodes that the output needs, in an order in which they can be computed."""

    nodes: list[Node]
    image: Node
    output: Node

    @property
    def barriers(self) -> list[Node]:
        """Norms and means over whole maps, in the graph's order."""
        return [node for node in self.nodes if node.is_barrier]

    @property
    def levels(self) -> int:
        """Number of passes that measure moments."""
        return max((node.level for node in self.nodes), default=0)

    @property
    def constants(self) -> list[Node]:
        """Parameters, buffers and other tensors that the model holds."""
        return [node for node in self.nodes if node.value is not None]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters and buffers."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first parameter or buffer in floating point."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def build(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph of a model in evaluation mode for an image (N, C, *S).

    Raises:
        TilesError: the model cannot be exported, or has operators that need the whole map.
    """
    program = _export(model, shape)
    signature = program.graph_signature
    constants = {**program.state_dict, **program.constants}
    where = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    where |= signature.inputs_to_lifted_tensor_constants
    outputs = list(signature.user_outputs)
    if len(outputs) != 1 or not isinstance(outputs[0], str):
        raise TilesError(
            f"expected a model that returns one tensor, got {len(outputs)} outputs: wrap it in a "
            "module that returns one of them"
        )
    made: dict[Any, Node] = {}
    for fx_node in _needed(program.graph, outputs[0]):
        node = _node(len(made), fx_node, made)
        if fx_node.op == "placeholder" and fx_node.name in where:
            node.value = constants[where[fx_node.name]].detach()
        elif fx_node.op == "placeholder":
            node.is_map, node.size = True, tuple(shape[2:])
        made[fx_node] = node
    nodes = list(made.values())
    image = next((node for node in nodes if node.is_map), None)
    if image is None:
        raise TilesError(
            "the model's output does not depend on its input: there is nothing to tile"
        )
    _classify(nodes)
    return Graph(nodes, image, next(n for n in nodes if n.name == outputs[0]))


def _export(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """The exported program without in-place operators; composite operators stay whole."""
    if model.training:
        raise TilesError("the model is in training mode: call model.eval() first")
    image = torch.zeros(1, dtype=dtype_of(model), device=device_of(model)).expand(shape)
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own internals
            program = torch.export.export(model, (image,), strict=False)
            return program.run_decompositions({})
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise TilesError(
            f"torch.export cannot record the model for an input of shape {tuple(shape)}: "
            f"{type(error).__name__}: {first}"
        ) from error
    finally:
        logger.setLevel(level)


def _needed(graph: torch.fx.Graph, output: str) -> Iterator[torch.fx.Node]:
    """The nodes that the output depends on, in the graph's order."""
    pending = [node for node in graph.nodes if node.name == output]
    needed = set(pending)
    while pending:
        for node in pending.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                pending.append(node)
    return (node for node in graph.nodes if node in needed)


def _node(index: int, fx_node: torch.fx.Node, made: dict[Any, Node]) -> Node:
    stack = fx_node.meta.get("nn_module_stack") or {}
    places = [str(path) for path, _ in stack.values()]
    example = fx_node.meta.get("val")
    is_tuple = isinstance(example, (tuple, list))
    if is_tuple:
        example = example[0]  # type: ignore[index]
    is_call = fx_node.op == "call_function"
    node = Node(
        index=index,
        name=fx_node.name,
        target=fx_node.target if is_call else None,
        args=map_arg(fx_node.args, made.__getitem__),  # type: ignore[arg-type]
        kwargs=map_arg(fx_node.kwargs, made.__getitem__),  # type: ignore[arg-type]
        place=places[-1] if places else "",
        shape=example.shape if isinstance(example, Tensor) else None,
        dtype=example.dtype if isinstance(example, Tensor) else None,
        inputs=tuple(made[one] for one in fx_node.all_input_nodes),
        is_tuple=is_tuple,
    )
    for one in node.inputs:
        one.users.append(node)
    return node


def _classify(nodes: list[Node]) -> None:
    """Finds maps, rules and levels; lists all that is in the way."""
    from .rules import rule_of

    problems: list[str] = []
    unknown: set[Node] = set()
    for node in nodes:
        if unknown.intersection(node.inputs):
            unknown.add(node)
            continue
        node.level = max((one.level for one in node.inputs), default=0)
        if not any(one.is_map for one in node.inputs):
            continue
        try:
            node.rule = rule_of(node)
            node.rule.check(node)
        except TilesError as error:
            unknown.add(node)
            place = f"at {node.place}" if node.place else "in the model's own forward"
            problems.append(f"{node.operator} {place}: {error}")
            continue
        measured = node.rule.measured(node)
        if measured is not None:
            node.level = max(node.level, measured.level + 1)
    if problems:
        more = f"; and {len(problems) - PROBLEMS} more" if len(problems) > PROBLEMS else ""
        raise TilesError(
            "this model cannot be computed in tiles. " + "; ".join(problems[:PROBLEMS]) + more
        )
