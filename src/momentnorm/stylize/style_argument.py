"""Argument ``--style``: a style, a picture to learn the style of, or a blend of them."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.terminal import say
from .command_learn import with_bar
from .content import training_photographs
from .errors import PROGRAM, StylizeError
from .images import PHOTO_SUFFIXES, make_folder
from .learning import LEARN, learn
from .loss_network import loss_network
from .options import read_style_picture
from .styles import Style, blend, load_style, save_style
from .trunk_files import load_trunk, trunk_identity

if TYPE_CHECKING:
    import torch


def style_of(text: str, device: torch.device) -> Style | None:
    """Style that the argument names, or None if the user stopped learning it.

    Examples: ``mosaic``, ``mosaic:0.7``, ``mosaic:0.6,swirl:0.4``, ``mosaic,swirl``,
    ``my.safetensors`` and ``painting.jpg``.

    Raises:
        StylizeError: no such style, file or blend.
    """
    parts = []
    for name, weight in parse(text):
        style = _named(name, device)
        if style is None:
            return None
        parts.append((style, weight))
    return blend(parts)


def parse(text: str) -> list[tuple[str, float]]:
    """Names of styles and their weights. Styles without weights share equally.

    Raises:
        StylizeError: a name that is empty, or weights for some of the names alone.

    >>> parse("mosaic:0.6,swirl:0.4")
    [('mosaic', 0.6), ('swirl', 0.4)]
    >>> parse("mosaic,swirl")
    [('mosaic', 0.5), ('swirl', 0.5)]
    """
    if Path(text).exists():  # a file's name may contain commas and colons
        return [(text, 1.0)]
    found: list[tuple[str, float | None]] = []
    for part in text.split(","):
        name, colon, number = part.strip().rpartition(":")
        try:
            weight = float(number) if colon else None
        except ValueError:  # a colon that is part of the name
            weight = None
        found.append((part.strip(), None) if weight is None else (name, weight))
    if not all(name for name, _ in found):
        raise StylizeError(f"{text!r} names an empty style; write mosaic:0.6,swirl:0.4")
    weights = [weight for _, weight in found if weight is not None]
    if weights and len(weights) < len(found):
        raise StylizeError(f"{text!r} gives weights for some styles alone; give all or none")
    return [(name, 1 / len(found) if weight is None else weight) for name, weight in found]


def _named(name: str, device: torch.device) -> Style | None:
    path = Path(name)
    if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
        return _learned(path, device)
    return load_style(name)


def cache_folder() -> Path:
    """Folder of styles that were learned from pictures in passing."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    home = os.environ.get(variable)
    base = Path(home) if home else Path.home() / ".cache"
    return base / "momentnorm" / "styles"


def _learned(path: Path, device: torch.device) -> Style | None:
    """Style of a picture from the cache, or learned now and put there."""
    picture = read_style_picture(str(path))
    content = training_photographs(None)
    note = partial(say, PROGRAM)
    features = loss_network(None, content, note)
    trunk = load_trunk()
    known = hashlib.sha256(repr((LEARN, features.name, trunk_identity(trunk))).encode())
    known.update((picture.rgb * 255).round().byte().numpy().tobytes())
    folder = cache_folder()
    kept = folder / f"{known.hexdigest()[:24]}.safetensors"
    if kept.is_file():
        return load_style(kept)
    make_folder(folder)
    say(PROGRAM, f"learning the style of {path} for a few minutes, kept in {kept}")
    checkpoint = kept.with_suffix(".checkpoint.safetensors")
    style: Style | None = with_bar(
        LEARN,
        checkpoint,
        lambda **watched: learn(
            picture,
            content,
            LEARN,
            trunk=trunk,
            features=features,
            checkpoint=checkpoint,
            device=device,
            note=note,
            **watched,
        ),
    )
    if style is None:
        return None
    save_style(style, kept)
    checkpoint.unlink(missing_ok=True)
    return load_style(kept)  # in the precision that later runs have
