"""Plan of a run: passes, halos, memory, disk and arithmetic, as numbers and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .evaluate import multiplications, peak_bytes, region_bytes, steps
from .graph import Graph, Node
from .grid import Grid
from .regions import pixels, whole
from .schedule import Pass, last_use, passes

#: A tile of this many pixels along each axis, for two and for three axes (and one).
DEFAULT_TILE = {1: 65536, 2: 512, 3: 128}


@dataclass
class PassPlan:
    """One pass in numbers."""

    number: int
    measured: list[str]  # the norms whose moments it takes
    written: int  # bytes of maps that it writes to disk
    reads: list[str]  # "image", or the modules whose maps it reads from disk
    halo: int  # most pixels, of the map that is read, around a tile
    memory: int  # bytes, for the largest tile
    multiplications: int  # of the whole pass


@dataclass
class Plan:
    """Plan of a run. ``print(plan)`` shows it as text.

    Attributes:
        shape: of the image, (N, C, *S).
        out_shape: of the output.
        tile: pixels of a tile along each axis, on the larger of image and output.
        grid: number of tiles along each axis.
        schedule: ``store`` or ``recompute``.
        passes: one :class:`PassPlan` for each pass.
        memory: bytes of the largest tile's maps, beside the model and the process itself.
        disk: most bytes of maps on disk at once.
        multiplications: multiply-adds of all passes.
        untiled: multiply-adds of the model on the whole image.
        untiled_memory: bytes that the whole image would need, by the same account.
        seconds: estimated from one tile of zeros; None until :meth:`momentnorm.tiles.Tiled.plan`
            was asked for it.
    """

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    tile: tuple[int, ...]
    grid: tuple[int, ...]
    schedule: str
    passes: list[PassPlan]
    memory: int
    disk: int
    multiplications: int
    untiled: int
    untiled_memory: int
    seconds: float | None = None
    _layout: Layout | None = field(default=None, repr=False)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    def __str__(self) -> str:
        lines = [
            f"image {_by(self.shape)}, output {_by(self.out_shape)}",
            f"{self.tiles} tiles of {_by(self.tile)} ({_by(self.grid)}), schedule {self.schedule}, "
            f"{len(self.passes)} passes",
        ]
        for one in self.passes:
            what = ", ".join(one.measured[:3]) + (" ..." if len(one.measured) > 3 else "")
            lines.append(
                f"  pass {one.number}: {'moments of ' + what if what else 'output'}; reads "
                f"{', '.join(one.reads[:3])}{' ...' if len(one.reads) > 3 else ''}; halo {one.halo}"
                + (f"; writes {size_text(one.written)}" if one.written else "")
            )
        ratio = self.multiplications / max(self.untiled, 1)
        lines += [
            f"memory {size_text(self.memory)} for a tile (the whole image: "
            f"{size_text(self.untiled_memory)}), disk {size_text(self.disk)}",
            f"arithmetic {ratio:.2f} times the untiled model's",
        ]
        if self.seconds is not None:
            lines.append(f"estimated time {time_text(self.seconds)}")
        return "\n".join(lines)


@dataclass(eq=False)
class Layout:
    """Graph, grid and passes of a run."""

    graph: Graph
    grid: Grid
    passes: list[Pass]

    @property
    def largest(self) -> tuple[int, ...]:
        """A tile in the middle: it is whole and has a halo on every side."""
        return tuple((count - 1) // 2 for count in self.grid.counts)


def make_plan(graph: Graph, tile: tuple[int, ...], store: bool) -> Plan:
    """The plan of a run."""
    grid = Grid.of(graph, tile)
    layout = Layout(graph, grid, passes(graph, store))
    parts = [_pass_plan(layout, one) for one in layout.passes]
    last = layout.passes[-1].targets
    all_at_once = steps(graph, {node: whole(node.size) for node in last}, {graph.image})
    assert graph.image.shape is not None
    assert graph.output.shape is not None
    return Plan(
        shape=tuple(graph.image.shape),
        out_shape=tuple(graph.output.shape),
        tile=tile,
        grid=grid.counts,
        schedule="store" if store else "recompute",
        passes=parts,
        memory=max(part.memory for part in parts),
        disk=_disk(layout.passes),
        multiplications=sum(part.multiplications for part in parts),
        untiled=multiplications(all_at_once),
        untiled_memory=peak_bytes(all_at_once),
        _layout=layout,
    )


def _pass_plan(layout: Layout, one: Pass) -> PassPlan:
    graph, grid = layout.graph, layout.grid
    targets = {}
    for node in one.targets:
        # Where a tile has no pixel of a small map, some other tile has one.
        region = grid.region(node, layout.largest)
        targets[node] = region or tuple((0, 1) for _ in node.size)
    todo = steps(graph, targets, one.given)
    share = max(node_pixels(node) / pixels(region) for node, region in targets.items())
    halo, reads = 0, []
    for step in todo:
        if step.is_given:
            reads.append("the image" if step.node is graph.image else name_of(step.node))
            own = grid.region(step.node, layout.largest)
            for (a, b), (c, d) in zip(step.region, own or step.region, strict=True):
                halo = max(halo, c - a, b - d)
    return PassPlan(
        number=one.number,
        measured=[name_of(b) for b in graph.barriers if _measured(b) in one.measured],
        written=sum(node.bytes() for node in one.stored),
        reads=list(dict.fromkeys(reads)),
        halo=halo,
        memory=peak_bytes(todo) + max(region_bytes(node, targets[node]) for node in targets),
        multiplications=round(multiplications(todo) * share),
    )


def node_pixels(node: Node) -> int:
    """Number of pixels of a whole map."""
    return math.prod(node.size)


def name_of(node: Node) -> str:
    """The module that computes a node, or the node's own name."""
    return node.place or node.name


def _measured(barrier: Node) -> Node | None:
    return None if barrier.rule is None else barrier.rule.measured(barrier)


def _disk(passes: list[Pass]) -> int:
    """Most bytes on disk at once: a map is there from the pass that writes it to its last use."""
    last = last_use(passes)
    written = {node: one.number for one in passes for node in one.stored}
    return max(
        sum(n.bytes() for n, when in written.items() if when <= one.number <= last.get(n, when))
        for one in passes
    )


def _by(values: tuple[int, ...]) -> str:
    return " x ".join(str(value) for value in values)


def size_text(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def time_text(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
