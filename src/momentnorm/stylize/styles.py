"""Styles: vectors for a trunk, their files, and blends of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import StylizeError
from .tensor_files import Kind, open_tensors, write_safetensors
from .trunk_files import FOLDER, LICENSE, TRUNK_NAME, load_trunk, trunk_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .trunk import Trunk

STYLE = Kind(
    "momentnorm-trunk-style",
    1,
    "a style",
    "learn one from a picture: momentnorm stylize learn PICTURE -o FILE.safetensors",
)
#: A sum of weights this close to 1 is 1, since ten times 0.1 is not exactly 1 in binary.
_SLACK = 1e-6


@dataclass(frozen=True)
class Style:
    """A style: a vector for a trunk.

    Args:
        vector: weights and biases of the trunk's norms, and its last convolution, (S,).
        trunk: the network that the vector belongs to.
        picture: description of the style picture.
        name: name of the style.
        license: licence of the style.
        strength: 1 is the style alone, 0 the photograph, in between a mixture.
    """

    vector: Tensor
    trunk: Trunk = field(repr=False)
    picture: str = ""
    name: str = ""
    license: str = LICENSE
    strength: float = 1.0


def bundled_styles() -> list[str]:
    """Names of the styles that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if file.name != TRUNK_NAME)


def save_style(style: Style, path: str | Path) -> None:
    """Write a style file, in half precision.

    Raises:
        StylizeError: a place that cannot be written.
    """
    metadata = {
        "format": STYLE.form,
        "version": str(STYLE.version),
        "trunk": trunk_identity(style.trunk),
        "picture": style.picture,
        "license": style.license,
    }
    write_safetensors({"style": style.vector.detach().cpu().half()}, metadata, Path(path))


def load_style(name_or_path: str | Path, trunk: Trunk | None = None) -> Style:
    """Read the bundled style of this name, or a style file.

    Args:
        name_or_path: name of a bundled style, or a file.
        trunk: the trunk that the style is for. Without one it is the bundled trunk, or the
            ``trunk.safetensors`` in the folder of the style file where the style belongs to that.

    Raises:
        StylizeError: no such style or file, another kind of file, a style of an unknown trunk, or
            a file from a newer momentnorm.
    """
    name = str(name_or_path)
    path = FOLDER / f"{name}.safetensors" if name in bundled_styles() else Path(name)
    if not path.is_file():
        raise StylizeError(
            f"no style {name!r}: give a style file, a picture, or one of "
            f"{', '.join(bundled_styles())}"
        )
    with open_tensors(path, STYLE) as file:
        metadata = file.metadata
        trunk = _trunk_of(metadata.get("trunk", ""), path) if trunk is None else trunk
        if metadata.get("trunk") != trunk_identity(trunk):
            raise file.error("the style belongs to another trunk")
        vector = file.read({"style": torch.empty(trunk.shape.numbers, device="meta")})["style"]
    return Style(
        vector,
        trunk,
        picture=metadata.get("picture", ""),
        name=path.stem,
        license=metadata.get("license", ""),
    )


def _trunk_of(identity: str, path: Path) -> Trunk:
    """Trunk that a style file belongs to; the bundled one if none of that identity is found."""
    beside = path.parent / TRUNK_NAME
    if identity != trunk_identity(load_trunk()) and beside.is_file():
        return load_trunk(beside)
    return load_trunk()


def blend(parts: Sequence[tuple[Style, float]]) -> Style:
    """Style between several styles of one trunk.

    Vectors are averaged by weight. The weights sum to at most 1, and what is missing is the
    share of the photograph: it becomes the blend's strength.

    Args:
        parts: styles and their weights.

    Raises:
        StylizeError: a weight that is negative or no number, a sum outside (0, 1], or styles of
            different trunks.
    """
    weights = [weight for _, weight in parts]
    total = sum(weights)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise StylizeError(f"the weights of styles are numbers from 0 to 1, not {weights}")
    if not 0 < total <= 1 + _SLACK:
        raise StylizeError(
            f"the weights of the styles sum to {total:g}; they have to sum to more than 0 and at "
            "most 1, and the rest is the photograph"
        )
    first = parts[0][0]
    identity = trunk_identity(first.trunk)
    for style, _ in parts[1:]:
        if trunk_identity(style.trunk) != identity:
            raise StylizeError(
                f"{first.name} and {style.name} are styles of different trunks; learn both "
                "pictures on one trunk"
            )
    if len(parts) == 1:
        vector = first.vector
    else:
        shares = torch.tensor(weights, dtype=torch.float64) / total
        vectors = torch.stack([style.vector.double() for style, _ in parts])
        vector = (shares @ vectors).to(first.vector)
    return Style(
        vector,
        first.trunk,
        picture=" and ".join(style.picture for style, _ in parts),
        name="+".join(style.name for style, _ in parts),
        strength=1.0 if total > 1 - _SLACK else total,
    )
