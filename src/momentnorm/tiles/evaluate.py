"""One tile: which region of each map it needs, in which order, and the computation itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx.node import map_aggregate

from .graph import Graph, Node
from .moments_of import Statistics
from .regions import Region, hull, key, pixels

Read = Callable[[Node, Region], Tensor]
Emit = Callable[[Node, Tensor], None]


@dataclass(eq=False)
class Step:
    """One node on one region; afterwards the values of ``done`` are dropped."""

    node: Node
    region: Region
    is_given: bool
    done: list[Node] = field(default_factory=list)


def steps(graph: Graph, targets: dict[Node, Region], given: set[Node]) -> list[Step]:
    """The steps of a tile: targets are computed, maps of ``given`` are read."""
    needed = dict(targets)
    for node in reversed(graph.nodes):
        if node in needed and node not in given:
            assert node.rule is not None
            for one, region in node.rule.needs(node, needed[node]):
                needed[one] = hull(needed[one], region) if one in needed else region
    order = _order(list(targets), given)
    result = [Step(node, needed[node], node in given) for node in order]
    last = {step.node: step for step in result}
    for step in result:
        if not step.is_given:
            last.update((one, step) for one in step.node.inputs if one.is_map)
    for node, step in last.items():
        step.done.append(node)
    return result


def _order(targets: list[Node], given: set[Node]) -> list[Node]:
    """An order for computing the targets in which few maps are alive at once: of an operator's
    inputs the deepest is computed first, so that skip connections wait for as short as possible."""
    order: dict[Node, None] = {}
    pending = [(node, False) for node in sorted(targets, key=lambda n: n.index)]
    while pending:
        node, is_ready = pending.pop()
        if node in order:
            continue
        if is_ready or node in given:
            order[node] = None
            continue
        pending.append((node, True))
        inputs = {one for one in node.inputs if one.is_map}
        pending += [(one, False) for one in sorted(inputs, key=lambda n: n.index)]
    return list(order)


class Small:
    """The values of small tensors, computed as soon as the moments that they need are known."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values: dict[Node, Any] = {}

    def update(self, level: int, statistics: dict[Node, Statistics]) -> None:
        """Computes all small tensors up to a level."""
        for node in self._graph.nodes:
            if node.is_map or node.level > level or node in self._values:
                continue
            if node.value is not None:
                self._values[node] = node.value
            elif node.rule is not None:
                measured = statistics[node]
                self._values[node] = node.rule.compute(node, (), self._take, measured)
            else:
                self._values[node] = self._called(node)

    def _take(self, node: Node, region: Region | None) -> Tensor:
        value: Tensor = self._values[node]
        return value

    def _called(self, node: Node) -> Any:
        def operand(value: Any) -> Any:
            return self._values[value] if isinstance(value, Node) else value

        args = map_aggregate(node.args, operand)
        return node.target(*args, **map_aggregate(node.kwargs, operand))

    def __getitem__(self, node: Node) -> Any:
        return self._values[node]


def compute(
    steps: list[Step],
    targets: dict[Node, Region],
    small: Small,
    statistics: dict[Node, Statistics],
    read: Read,
    emit: Emit,
) -> None:
    """Takes the steps of a tile; ``emit`` gets each target as soon as it is known."""
    values: dict[Node, tuple[Any, Region]] = {}

    def take(node: Node, region: Region | None) -> Any:
        if not node.is_map:
            return small[node]
        value, have = values[node]
        assert region is not None
        return value if region == have else _cut(value, region, have)

    for step in steps:
        node = step.node
        if step.is_given:
            value = read(node, step.region)
        else:
            assert node.rule is not None
            value = node.rule.compute(node, step.region, take, statistics.get(node))
        values[node] = value, step.region
        if node in targets:
            emit(node, take(node, targets[node]))
        del value
        for one in step.done:
            del values[one]


def _cut(value: Any, region: Region, have: Region) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_cut(one, region, have) for one in value)
    return value[key(region, have)]


def peak_bytes(steps: list[Step]) -> int:
    """Most bytes that the steps of a tile have in memory at once, as far as can be told."""
    alive: dict[Node, int] = {}
    peak = 0
    for step in steps:
        node = step.node
        alive[node] = region_bytes(node, step.region)
        beside = 0 if step.is_given else _rule(node).workspace(node, step.region)
        peak = max(peak, sum(alive.values()) + beside)
        for one in step.done:
            del alive[one]
    return peak


def region_bytes(node: Node, region: Region) -> int:
    """Bytes of a region of a map; a tuple of tensors is views of its source."""
    if node.dtype is None or node.is_tuple:
        return 0
    return math.prod(node.channels) * pixels(region) * node.dtype.itemsize


def multiplications(steps: list[Step]) -> int:
    """Multiply-adds of a tile."""
    return sum(
        _rule(step.node).multiplications(step.node, step.region)
        for step in steps
        if not step.is_given
    )


def _rule(node: Node) -> Any:
    return node.rule
