"""Fingerprint of a run: a run is resumed only with an equal model, image and plan."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import torch

from .files import Source
from .graph import Graph
from .plan import Plan

#: Pixels along each axis of the pieces of the source that are compared.
PIECE = 32


def key_of(graph: Graph, plan: Plan, source: Source, moments: Any) -> dict[str, Any]:
    """Parts of a run that have to agree, by the names that an error uses."""
    return {
        "shape": plan.shape,
        "tile": plan.tile,
        "schedule": plan.schedule,
        "model": _operators(graph),
        "weights": _weights(graph),
        "source": _pieces(graph, source),
        "moments": None if moments is None else _moments(moments),
        "threads": torch.get_num_threads(),
    }


def _operators(graph: Graph) -> str:
    text = "\n".join(f"{n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(graph: Graph) -> str:
    digest = hashlib.sha256()
    for node in graph.constants:
        assert node.value is not None
        digest.update(_bytes(node.value))
    return digest.hexdigest()[:16]


def _pieces(graph: Graph, source: Source) -> int:
    """A checksum of the image's first and last corner and of its middle."""
    checksum = 0
    size = graph.image.size
    for place in (0.0, 0.5, 1.0):
        region = []
        for length in size:
            start = int(place * max(length - PIECE, 0))
            region.append((start, min(start + PIECE, length)))
        piece = source.read(tuple(region), torch.float64, torch.device("cpu"))
        checksum = zlib.crc32(_bytes(piece), checksum)
    return checksum


def _moments(moments: Any) -> str:
    digest = hashlib.sha256()
    for name in sorted(moments):
        for tensor in moments[name].state_dict().values():
            digest.update(_bytes(tensor.double()))
    return digest.hexdigest()[:16]


def _bytes(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data
