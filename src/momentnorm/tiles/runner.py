"""``tiled(model)``: the object that plans and runs a model over tiles."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..moments import Moments
from .errors import TilesError
from .evaluate import Small, compute, multiplications, steps
from .execute import Progress, Run
from .files import Sink, Source, path_of
from .fingerprint import key_of
from .graph import Graph, Node, build, device_of
from .ledger import Ledger
from .moments_of import Statistics, on
from .plan import DEFAULT_TILE, Layout, Plan, make_plan, name_of, size_text

#: Tiles that are tried, largest first, where a budget of memory is given.
TILES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 16)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
#: Pixels along each axis of the piece whose time is measured for a plan.
MEASURED = {1: 4096, 2: 160, 3: 40}


class Tiled:
    """A model that is computed tile by tile; see :func:`momentnorm.tiled`."""

    def __init__(
        self,
        model: nn.Module,
        tile: int | tuple[int, ...] | str,
        memory: int | str | None,
        store: bool | str,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TilesError(f"expected a torch.nn.Module, got {type(model).__name__}")
        if store not in (True, False, "auto"):
            raise TilesError(f'store is True, False or "auto", not {store!r}')
        self._model = model
        self._axes = _axes_of(model)
        self._memory = None if memory is None else _bytes_of(memory)
        self._tile = tile if tile == "auto" else _tile_of(tile, self._axes)
        self._store = store
        self._graph: tuple[Any, Graph] | None = None

    @torch.no_grad()
    def plan(self, image: Any, estimate: bool = True) -> Plan:
        """Plan a run over an image. Only one small tile of zeros is computed, to estimate the time.

        Args:
            image: a source, or the shape of one.
            estimate: whether to measure a tile for the estimate of the time.
        """
        is_shape = isinstance(image, (tuple, torch.Size))
        shape = tuple(image) if is_shape else Source(image, self._axes).shape
        plan = self._plan(shape, None, self._store)
        if estimate:
            plan.seconds = self._seconds(plan)
        return plan

    @torch.no_grad()
    def __call__(
        self,
        source: Any,
        out: Any = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        moments: dict[str, Moments] | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Computes the model's output for an image.

        Args:
            source: the image, (N, C, \\*S) or (C, \\*S): a tensor, anything that slices (a memory
                map, zarr, HDF5), a path or a :class:`momentnorm.tiles.File`.
            out: what the output is written to, of the same kinds; a new tensor without it.
            resume: a folder in which the run keeps its place. If the run stops for whatever
                reason, the same call goes on where it stopped.
            moments: the moments to use in place of the image's own, from :meth:`moments`.
            progress: is called with the number of tiles that are done, and of all tiles.

        Returns:
            ``out``, or the new tensor.

        Raises:
            TilesError: the model cannot be computed in tiles, the memory or disk is too small, or
                a file cannot be read or written. The message is one line.
        """
        image = Source(source, self._axes)
        # With moments there is one pass, and nothing to keep for another.
        plan = self._plan(image.shape, resume, False if moments is not None else self._store)
        layout = _layout(plan)
        output, passes = layout.graph.output, layout.passes
        if not output.is_map and out is not None:
            raise TilesError(
                f"the model's output is one small tensor {plan.out_shape}: call without out"
            )
        with self._run(plan, image, resume, moments, progress) as run:
            if moments is not None:
                run.use(_by_node(layout.graph, moments, run.device))
                passes = [one for one in passes if one.output is not None]
            if not output.is_map:
                return run.execute(passes)[output]
            assert output.dtype is not None
            path = path_of(out)
            if path is not None:
                run.ledger.claim(path)
            run.sink = Sink(out, plan.out_shape, output.dtype, plan.tile)
            run.execute(passes)
            return run.sink.array if path is None else out

    @torch.no_grad()
    def moments(
        self,
        source: Any,
        *,
        resume: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Moments]:
        """The moments of every map that a norm of the model measures, by the norm's name.

        They are those of whole planes, (N, C), and may be used for another image.
        """
        image = Source(source, self._axes)
        plan = self._plan(image.shape, resume, self._store)
        layout = _layout(plan)
        with self._run(plan, image, resume, None, progress) as run:
            run.execute([one for one in layout.passes if one.output is None])
            return {
                name: run.known[_measured(barrier)]
                for name, barrier in _names(layout.graph).items()
            }

    @contextmanager
    def _run(
        self, plan: Plan, image: Source, resume: Any, moments: Any, progress: Progress | None
    ) -> Iterator[Run]:
        """A run with its folder and ledger; an error tells what is kept."""
        layout = _layout(plan)
        with tempfile.TemporaryDirectory(prefix="momentnorm-") as temporary:
            folder = Path(temporary if resume is None else resume)
            key = {} if resume is None else key_of(layout.graph, plan, image, moments)
            ledger = Ledger(None if resume is None else folder, key)
            try:
                yield Run(layout, image, None, ledger, folder, device_of(self._model), progress)
            except OSError as error:
                place = error.filename or folder
                raise TilesError(f"{place}: {error.strerror or error}{_kept(resume)}") from error
            except TilesError as error:
                raise TilesError(f"{error}{_kept(resume)}") from error
            finally:
                ledger.close()

    def _build(self, shape: tuple[int, ...]) -> Graph:
        """The graph for a shape; the last one, if neither shape nor model has changed."""
        if self._model.training:
            raise TilesError("the model is in training mode: call model.eval() first")
        tensors = (*self._model.parameters(), *self._model.buffers())
        key = (shape, repr(self._model), [(id(one), one.data_ptr()) for one in tensors])
        if self._graph is None or self._graph[0] != key:
            self._graph = key, build(self._model, shape)
        return self._graph[1]

    def _plan(self, shape: tuple[int, ...], folder: Any, wish: bool | str) -> Plan:
        if len(shape) == 1 + self._axes:
            shape = (1, *shape)
        if len(shape) != 2 + self._axes:
            raise TilesError(
                f"expected the shape (N, C, *S) of an image with {self._axes} spatial axes, "
                f"got {shape}"
            )
        graph = self._build(shape)
        store = _has_space(graph, folder) if wish == "auto" else bool(wish)
        if self._tile != "auto":
            plan = make_plan(graph, self._tile, store)  # type: ignore[arg-type]
        elif self._memory is None:
            plan = make_plan(graph, (DEFAULT_TILE[self._axes],) * self._axes, store)
        else:
            plan = self._largest(graph, store)
        if self._memory is not None and plan.memory > self._memory:
            raise TilesError(
                f"tiles of {plan.tile} need {size_text(plan.memory)}, more than the budget of "
                f"{size_text(self._memory)}: choose smaller tiles or a larger budget"
            )
        return plan

    def _largest(self, graph: Graph, store: bool) -> Plan:
        """The plan with the largest tiles that the budget allows, or else with the smallest."""
        plan = None
        for tile in TILES:
            plan = make_plan(graph, (tile,) * self._axes, store)
            if plan.memory <= (self._memory or 0):
                break
        assert plan is not None
        return plan

    def _seconds(self, plan: Plan) -> float:
        """Time of one small tile of zeros, scaled by the multiply-adds of all passes."""
        layout = _layout(plan)
        graph = layout.graph
        device = device_of(self._model)
        measured = {b: _measured(b) for b in graph.barriers}
        target = graph.output if graph.output.is_map else next(iter(measured.values()))
        side = MEASURED[self._axes]
        region = tuple(((n - min(n, side)) // 2, (n + min(n, side)) // 2) for n in target.size)
        statistics = {
            barrier: Statistics(
                Moments(
                    torch.ones(()),
                    torch.zeros(node.channels, dtype=torch.float64, device=device),
                    torch.ones(node.channels, dtype=torch.float64, device=device),
                )
            )
            for barrier, node in measured.items()
        }
        small = Small(graph)
        small.update(graph.levels, statistics)
        todo = steps(graph, {target: region}, {graph.image})

        def zeros(node: Node, part: Any) -> Tensor:
            shape = (*node.channels, *(b - a for a, b in part))
            return torch.zeros(shape, dtype=node.dtype, device=device)

        times = []
        for _ in range(2):
            start = time.perf_counter()
            compute(todo, {target: region}, small, statistics, zeros, lambda *_: None)
            times.append(time.perf_counter() - start)
        return min(times) / max(multiplications(todo), 1) * plan.multiplications


def _has_space(graph: Graph, folder: Any) -> bool:
    """Whether the disk has the space for the schedule that stores maps."""
    place = Path(folder or tempfile.gettempdir()).absolute()
    while not place.exists():
        place = place.parent
    disk = make_plan(graph, graph.image.size, True).disk
    return disk < 0.9 * shutil.disk_usage(place).free


def _layout(plan: Plan) -> Layout:
    assert plan._layout is not None
    return plan._layout


def _measured(barrier: Node) -> Node:
    assert barrier.rule is not None
    node = barrier.rule.measured(barrier)
    assert node is not None
    return node


def _names(graph: Graph) -> dict[str, Node]:
    """Barriers by the name of their module; a module that has several adds the operator's name."""
    places = [name_of(barrier) for barrier in graph.barriers]
    return {
        place if places.count(place) == 1 else f"{place}:{barrier.name}": barrier
        for place, barrier in zip(places, graph.barriers, strict=True)
    }


def _by_node(
    graph: Graph, moments: dict[str, Moments], device: torch.device
) -> dict[Node, Moments]:
    names = _names(graph)
    if moments.keys() != names.keys():
        different = sorted(moments.keys() ^ names.keys())
        raise TilesError(f"the moments are of another model: {', '.join(different[:5])} differ")
    result = {}
    for name, barrier in names.items():
        node = _measured(barrier)
        if tuple(moments[name].mean.shape) != node.channels:
            raise TilesError(
                f"the moments of {name} have shape {tuple(moments[name].mean.shape)}, the map has "
                f"{node.channels} samples and channels"
            )
        result[node] = on(moments[name], device)
    return result


def _kept(resume: Any) -> str:
    if resume is None:
        return ""
    return f". What is done is kept in {resume}: the same call goes on from there"


def _axes_of(model: nn.Module) -> int:
    """The number of spatial axes, by the first module whose class says it; 2 if none does."""
    for module in model.modules():
        found = re.search(r"([123])d$", type(module).__name__)
        if found:
            return int(found[1])
    return 2


def _tile_of(tile: Any, axes: int) -> tuple[int, ...]:
    values = (tile,) * axes if isinstance(tile, int) else tile
    if (
        not isinstance(values, (tuple, list))
        or len(values) != axes
        or not all(isinstance(one, int) and one > 0 for one in values)
    ):
        raise TilesError(
            f'tile is "auto", a positive number of pixels, or one for each of the {axes} axes, '
            f"not {tile!r}"
        )
    return tuple(values)


def _bytes_of(memory: int | str) -> int:
    if isinstance(memory, int) and memory > 0:
        return memory
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?B?)\s*", str(memory).upper())
    if not found or found[1].count(".") > 1 or found[1] == ".":
        raise TilesError(f'memory is a number of bytes or a text such as "4GB", not {memory!r}')
    unit = found[2] if found[2] in UNITS else found[2] + "B"
    return int(float(found[1]) * UNITS[unit])


def tiled(
    model: nn.Module,
    tile: int | tuple[int, ...] | str = "auto",
    memory: int | str | None = None,
    store: bool | str = "auto",
) -> Tiled:
    r"""Computes a model on images and volumes larger than memory, tile by tile and exactly.

    A norm needs statistics of the whole feature map, so tiles cannot be normalized one by one:
    seams would show. Here the moments of all tiles are merged first (:class:`momentnorm.Moments`),
    and every convolution gets the neighbours that it would see in the whole image. The output
    equals the untiled one within rounding; memory is bounded by the tile.

    Args:
        model: a module in evaluation mode that takes one tensor (N, C, \*S) and returns one. Its
            operators are convolutions, pooling, upsampling, padding, cropping, norms, and whatever
            treats each pixel by itself; others are refused, each with its place and the reason.
        tile: pixels along each axis of the larger of image and output. ``"auto"``: as ``memory``
            allows, or 512 (128 for volumes) without it.
        memory: the budget for a tile's maps, such as ``"4GB"``; the model and the Python process
            come on top.
        store: ``True`` keeps maps on disk between passes, so that each is computed once. ``False``
            computes them again in every pass. ``"auto"``: ``True`` if the disk has the space. Maps
            lie in the folder ``resume``, or else in the system's folder for temporary files.

    Raises:
        TilesError: an argument is none of these.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU()).eval()
    >>> run = tiled(model, tile=64)
    >>> image = torch.rand(3, 200, 150)
    >>> torch.allclose(run(image), model(image[None]), atol=1e-5)
    True
    """
    return Tiled(model, tile, memory, store)
