"""Trunk files: safetensors in half precision."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

from ..support.printable import one_line
from .errors import StylizeError
from .tensor_files import Kind, open_tensors, write_safetensors
from .trunk import Trunk, TrunkShape

#: Folder of the bundled trunk and its styles.
FOLDER = Path(__file__).parent / "styles"
#: Name of a trunk's file. It stands in the folder of its styles.
TRUNK_NAME = "trunk.safetensors"
LICENSE = "Apache-2.0; trained by momentnorm"
TRUNK = Kind(
    "momentnorm-trunk", 1, "a trunk", "give a trunk file that momentnorm stylize train wrote"
)


def trunk_identity(trunk: Trunk) -> str:
    """Hash of the weights in half precision. A style file names the trunk that it belongs to."""
    found = hashlib.sha256()
    for key, value in sorted(trunk.state_dict().items()):
        found.update(key.encode())
        found.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def save_trunk(trunk: Trunk, path: str | Path) -> None:
    """Write a trunk file.

    Raises:
        StylizeError: a place that cannot be written.
    """
    tensors = {key: value.detach().cpu().half() for key, value in trunk.state_dict().items()}
    metadata = {
        "format": TRUNK.form,
        "version": str(TRUNK.version),
        "width": str(trunk.shape.width),
        "blocks": str(trunk.shape.blocks),
        "license": LICENSE,
    }
    write_safetensors(tensors, metadata, Path(path))


def load_trunk(path: str | Path | None = None) -> Trunk:
    """Read a trunk file; without a path, give the bundled trunk, which is read once.

    Raises:
        StylizeError: no such file, another kind of file, or one from a newer momentnorm.
    """
    return _bundled() if path is None else _read(Path(path))


@functools.cache
def _bundled() -> Trunk:
    return _read(FOLDER / TRUNK_NAME)


def _read(path: Path) -> Trunk:
    if not path.is_file():
        raise StylizeError(f"{path}: no such file; {TRUNK.fix}")
    with open_tensors(path, TRUNK) as file:
        try:
            shape = TrunkShape(int(file.metadata["width"]), int(file.metadata["blocks"]))
        except (KeyError, ValueError, StylizeError) as error:
            raise file.error(f"the metadata is damaged ({one_line(error)[:100]})") from error
        with torch.device(
            "meta"
        ):  # a size that the file claims costs no memory until it is checked
            trunk = Trunk(shape)
        tensors = file.read(trunk.state_dict())
    trunk.load_state_dict(tensors, assign=True)
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trunk.eval().requires_grad_(False)
