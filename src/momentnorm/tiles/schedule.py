"""Passes over the image, and which maps are kept on disk between them.

Pass p computes the maps of level p - 1, from which the barriers of level p get their moments. The
last pass computes the output. Under the schedule *recompute* every pass starts at the image. Under
*store* a map that a later pass needs again is written to disk, unless it is cheap to compute again
from what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import Graph, Node

#: A map that is cheap to compute is kept nevertheless if that needs more stored maps than this.
READS = 2


@dataclass(eq=False)
class Pass:
    """One pass over the tiles."""

    number: int
    measured: list[Node] = field(default_factory=list)  # maps whose moments are taken
    stored: list[Node] = field(default_factory=list)  # maps that are written to disk
    given: set[Node] = field(default_factory=set)  # maps that are there: the image, stored maps
    output: Node | None = None  # in the last pass

    @property
    def targets(self) -> list[Node]:
        """The maps that this pass is for."""
        last = [self.output] if self.output is not None else []
        return list(dict.fromkeys([*self.measured, *self.stored, *last]))


def passes(graph: Graph, store: bool) -> list[Pass]:
    """The passes of a schedule, in order."""
    stored = _stored(graph) if store else {}
    return _passes(graph, stored)


def reach(targets: list[Node], given: set[Node]) -> tuple[set[Node], set[Node]]:
    """The maps that are computed for these targets, and those of ``given`` that are read."""
    computed: set[Node] = set()
    read: set[Node] = set()
    pending = list(targets)
    while pending:
        node = pending.pop()
        if node in given:
            read.add(node)
        elif node not in computed:
            computed.add(node)
            pending += [one for one in node.inputs if one.is_map]
    return computed, read


def last_use(passes: list[Pass]) -> dict[Node, int]:
    """The number of the last pass that reads each stored map."""
    last: dict[Node, int] = {}
    for one in passes:
        for node in reach(one.targets, one.given)[1]:
            last[node] = one.number
    return last


def _passes(graph: Graph, stored: dict[Node, int]) -> list[Pass]:
    measured: dict[int, list[Node]] = {}
    for barrier in graph.barriers:
        assert barrier.rule is not None
        node = barrier.rule.measured(barrier)
        assert node is not None
        measured.setdefault(node.level + 1, []).append(node)
    result = []
    for number in range(1, graph.levels + 1):
        given = {graph.image, *(node for node, written in stored.items() if written < number)}
        written = [node for node, when in stored.items() if when == number]
        taken = list(dict.fromkeys(measured.get(number, [])))
        result.append(Pass(number, taken, written, given))
    if graph.output.is_map:
        given = {graph.image, *stored}
        result.append(Pass(graph.levels + 1, given=given, output=graph.output))
    return result


def _stored(graph: Graph) -> dict[Node, int]:
    """The maps to keep, and the pass that writes each."""
    stored: dict[Node, int] = {}
    while True:
        found = _next_to_store(_passes(graph, stored))
        if found is None:
            return dict(sorted(stored.items(), key=lambda item: item[0].index))
        stored[found[0]] = found[1]


def _next_to_store(passes: list[Pass]) -> tuple[Node, int] | None:
    """A map that is computed in two passes and should not be, and the first of them."""
    first: dict[Node, int] = {}
    for one in passes:
        computed, _ = reach(one.targets, one.given)
        again_computed = {
            node for node in computed if first.setdefault(node, one.number) < one.number
        }
        # A measured map comes before the operators that lead to it: it stands for all of them.
        was_measured = {n for n in again_computed if n in passes[first[n] - 1].measured}
        for node in sorted(again_computed, key=lambda n: (n not in was_measured, n.index)):
            earlier = first[node]
            if node.is_tuple:
                continue
            again, reads = reach([node], one.given)
            if all(_is_cheap(part) for part in again) and len(reads) <= READS:
                continue
            if node in was_measured or not _is_cheap(node):
                return _smallest(node, passes[earlier - 1].given), earlier
            if all(_is_cheap(part) for part in again):
                return node, earlier
    return None


def _is_cheap(node: Node) -> bool:
    return node.rule is not None and node.rule.cheap


def _smallest(node: Node, given: set[Node]) -> Node:
    """The map that a cheap chain of operators on one map starts from, unless it is larger."""
    while _is_cheap(node):
        sources = [one for one in node.inputs if one.is_map]
        one = sources[0]
        assert node.rule is not None
        if len(sources) > 1 or one.is_tuple or one in given or node.rule.measured(node) is not None:
            break
        if one.dtype is None or one.shape is None or one.bytes() > node.bytes():
            break
        node = one
    return node
