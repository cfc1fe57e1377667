"""Style files: a trained network in safetensors, with what is needed to build it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..support.printable import one_line
from .errors import StylizeError
from .network import Architecture, Network
from .tensor_files import Kind, TensorFile, open_tensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "momentnorm-style"
VERSION = 1
FOLDER = Path(__file__).parent / "styles"
LICENSE = "Apache-2.0; trained by momentnorm"
KIND = Kind(FORMAT, VERSION, "a style", "make a style file with momentnorm stylize train")


@dataclass
class Style:
    """A trained network, and what is known of it."""

    network: Network
    picture: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    license: str = LICENSE

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def bundled_styles() -> list[str]:
    """The names of the styles that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def save_style(style: Style, path: str | Path) -> None:
    """Write a style file, in half precision: training leaves no more than that in a weight.

    Raises:
        StylizeError: a place that cannot be written.
    """
    architecture = style.network.architecture
    tensors = {
        key: value.detach().cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in style.network.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "norm": architecture.norm,
        "width": str(architecture.width),
        "blocks": str(architecture.blocks),
        "picture": style.picture,
        "training": json.dumps(dict(style.training), sort_keys=True),
        "license": style.license,
    }
    write_safetensors(tensors, metadata, Path(path))


def load_style(name_or_path: str | Path) -> Style:
    """The bundled style of this name, or a style file.

    Raises:
        StylizeError: no such style or file, no style file, or one from a newer momentnorm.
    """
    name = str(name_or_path)
    path = FOLDER / f"{name}.safetensors" if name in bundled_styles() else Path(name)
    if not path.is_file():
        raise StylizeError(
            f"no style {name!r}: give a style file or one of {', '.join(bundled_styles())}"
        )
    with open_tensors(path, KIND) as file:
        metadata = file.metadata
        architecture, training = _described(file)
        with torch.device("meta"):  # what it claims to be costs nothing until it is believed
            network = Network(architecture)
        tensors = file.read(network.state_dict())
    network.load_state_dict(tensors, assign=True)
    return Style(
        network.eval(),
        picture=metadata.get("picture", ""),
        training=training,
        name=path.stem,
        license=metadata.get("license", ""),
    )


def _described(file: TensorFile) -> tuple[Architecture, dict[str, Any]]:
    """The network that the metadata names, and how it was trained."""
    metadata = file.metadata
    try:
        architecture = Architecture(
            metadata["norm"], int(metadata["width"]), int(metadata["blocks"])
        )
        training = json.loads(metadata.get("training", "{}"))
        if not isinstance(training, dict):
            raise ValueError("training is not an object")
    except (KeyError, ValueError, RecursionError, StylizeError) as error:
        text = one_line(error)[:100]
        raise StylizeError(
            f"{file.path}: the metadata is damaged ({text}); train the style again"
        ) from error
    return architecture, training
