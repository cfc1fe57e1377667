"""Style files: a trained network in safetensors, with what is needed to build it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .errors import StylizeError, one_line
from .images import whole_file
from .network import Architecture, Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = "momentnorm-style"
VERSION = 1
FOLDER = Path(__file__).parent / "styles"
LICENSE = "Apache-2.0; trained by momentnorm"
MAKE_ONE = "make one with momentnorm stylize train"


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
    tensors, metadata = read_safetensors(path, FORMAT, VERSION, "a style", MAKE_ONE)
    try:
        architecture = Architecture(
            metadata["norm"], int(metadata["width"]), int(metadata["blocks"])
        )
        training = json.loads(metadata.get("training", "{}"))
        if not isinstance(training, dict):
            raise ValueError("training is not an object")
    except (KeyError, ValueError, StylizeError) as error:
        raise StylizeError(
            f"{path}: the metadata is damaged ({one_line(error)}); train the style again"
        ) from error
    network = Network(architecture)
    load_tensors(network, tensors, path)
    return Style(
        network.eval(),
        picture=metadata.get("picture", ""),
        training=training,
        name=path.stem,
        license=metadata.get("license", ""),
    )


def load_tensors(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a network from a file's tensors, which must be exactly its own and finite."""
    expected = network.state_dict()
    for key, value in _in_both(expected, tensors, path):
        if value.shape != expected[key].shape:
            raise StylizeError(
                f"{path}: {key} has shape {tuple(value.shape)}, not {tuple(expected[key].shape)}; "
                "this is not a style of the architecture that it names"
            )
        if not torch.isfinite(value).all():
            raise StylizeError(f"{path}: {key} is not finite; train it again with a lower --lr")
    network.load_state_dict(tensors)


def _in_both(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path
) -> Iterable[tuple[str, Tensor]]:
    if missing := sorted(expected.keys() - found.keys()):
        raise StylizeError(f"{path}: {missing[0]} is missing; this is not a style file")
    if extra := sorted(found.keys() - expected.keys()):
        raise StylizeError(f"{path}: {extra[0]} does not belong here; this is not a style file")
    return found.items()


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """The whole file or none. The same tensors and metadata are the same bytes."""
    contiguous = {key: tensors[key].contiguous() for key in sorted(tensors)}
    encoded = _sorted_metadata(save(contiguous, metadata))
    with whole_file(path) as file:
        file.write(encoded)


def _sorted_metadata(encoded: bytes) -> bytes:
    """safetensors keeps metadata in a hash map, whose order differs from run to run."""
    length = int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + encoded[8 + length :]


def read_safetensors(
    path: Path, form: str, version: int, what: str, fix: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of this format, of this version or an older one.

    Raises:
        StylizeError: it is not ``what``, with the ``fix``, or newer.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StylizeError(f"{path}: not {what} file ({one_line(error)[:100]}); {fix}") from error
    if metadata.get("format") != form:
        raise StylizeError(f"{path}: safetensors, but not {what} file; {fix}")
    try:
        found = int(metadata["version"])
    except (KeyError, ValueError) as error:
        raise StylizeError(f"{path}: has no version; train the style again") from error
    if found > version:
        raise StylizeError(
            f"{path}: written by a newer momentnorm (format {found}, known is {version}): "
            "pip install --upgrade momentnorm"
        )
    return tensors, metadata
