"""Files of the trunk and of its styles: safetensors in half precision."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import StylizeError, one_line
from .styles import LICENSE, load_tensors, read_safetensors, write_safetensors
from .trunk import Trunk, TrunkShape

TRUNK_FORMAT = "momentnorm-trunk"
STYLE_FORMAT = "momentnorm-trunk-style"
VERSION = 1
#: The bundled trunk and its styles, one file each.
FOLDER = Path(__file__).parent / "styles" / "trunk"
TRUNK_FILE = FOLDER / "trunk.safetensors"
INSTALL_AGAIN = "pip install --force-reinstall momentnorm"


@dataclass
class TrunkStyle:
    """A style of a trunk.

    Args:
        vector: (S,), what :class:`Trunk` takes.
        trunk: identity of the trunk that it belongs to, see :func:`trunk_identity`.
        picture: describes the style picture.
        name: how a user calls it.
        license: of the style.
    """

    vector: Tensor
    trunk: str
    picture: str = ""
    name: str = ""
    license: str = LICENSE


def trunk_identity(trunk: Trunk) -> str:
    """A short hash of the weights in half precision: a style belongs to one trunk alone."""
    found = hashlib.sha256()
    for key, value in sorted(trunk.state_dict().items()):
        found.update(key.encode())
        found.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def trunk_styles() -> list[str]:
    """Names of the bundled styles."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors") if file != TRUNK_FILE)


def save_trunk(trunk: Trunk, path: str | Path) -> None:
    """Write a trunk.

    Raises:
        StylizeError: a place that cannot be written.
    """
    tensors = {key: value.detach().cpu().half() for key, value in trunk.state_dict().items()}
    metadata = {
        "format": TRUNK_FORMAT,
        "version": str(VERSION),
        "width": str(trunk.shape.width),
        "blocks": str(trunk.shape.blocks),
        "license": LICENSE,
    }
    write_safetensors(tensors, metadata, Path(path))


def load_trunk(path: str | Path | None = None) -> Trunk:
    """Read a trunk; without a path, the bundled one.

    Raises:
        StylizeError: no such file, no trunk, or one from a newer momentnorm.
    """
    path = TRUNK_FILE if path is None else Path(path)
    _check_there(path, "a trunk")
    tensors, metadata = read_safetensors(path, TRUNK_FORMAT, VERSION, "a trunk", INSTALL_AGAIN)
    try:
        shape = TrunkShape(int(metadata["width"]), int(metadata["blocks"]))
    except (KeyError, ValueError, StylizeError) as error:
        raise StylizeError(
            f"{path}: the metadata is damaged ({one_line(error)}); {INSTALL_AGAIN}"
        ) from error
    trunk = Trunk(shape)
    load_tensors(trunk, {key: value.float() for key, value in tensors.items()}, path)
    return trunk.eval().requires_grad_(False)


def save_trunk_style(style: TrunkStyle, path: str | Path) -> None:
    """Write a style.

    Raises:
        StylizeError: a place that cannot be written.
    """
    metadata = {
        "format": STYLE_FORMAT,
        "version": str(VERSION),
        "trunk": style.trunk,
        "picture": style.picture,
        "license": style.license,
    }
    write_safetensors({"style": style.vector.detach().cpu().half()}, metadata, Path(path))


def load_trunk_style(name_or_path: str | Path, trunk: Trunk) -> TrunkStyle:
    """The bundled style of this name, or a style file.

    Args:
        name_or_path: a bundled style's name or a file.
        trunk: the trunk that is going to use it.

    Raises:
        StylizeError: no such style or file, no style, or one of another trunk.
    """
    name = str(name_or_path)
    path = FOLDER / f"{name}.safetensors" if name in trunk_styles() else Path(name)
    _check_there(path, f"a style file or one of {', '.join(trunk_styles())}")
    tensors, metadata = read_safetensors(
        path, STYLE_FORMAT, VERSION, "a style", "give one that belongs to the trunk"
    )
    vector = tensors.get("style")
    if vector is None or vector.shape != (trunk.shape.numbers,):
        found = "nothing" if vector is None else tuple(vector.shape)
        raise StylizeError(
            f"{path}: holds {found}, and the trunk's styles have {trunk.shape.numbers} numbers; "
            "learn the style again"
        )
    if not torch.isfinite(vector).all():
        raise StylizeError(f"{path}: is not finite; learn the style again")
    identity = trunk_identity(trunk)
    if metadata.get("trunk") != identity:
        raise StylizeError(
            f"{path}: is a style of the trunk {metadata.get('trunk')}, not of {identity}; "
            "learn the style again on this trunk"
        )
    return TrunkStyle(
        vector.float(),
        identity,
        picture=metadata.get("picture", ""),
        name=path.stem,
        license=metadata.get("license", ""),
    )


def _check_there(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise StylizeError(f"{path}: no such file; give {wanted}")
