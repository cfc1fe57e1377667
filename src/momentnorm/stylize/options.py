"""Options that several commands of the application share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..support.arguments import positive
from .apply import stylize
from .artworks import ARTWORKS, draw
from .content import read_first
from .errors import StylizeError
from .images import Photo, check_folder_of, read_photo, to_tensor, write_photo
from .network import NORMS
from .trunk_training import StylePicture

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence

    import torch
    from _typeshed import DataclassInstance

    from .styles import Style

    Options = TypeVar("Options", bound=DataclassInstance)

PREVIEW_SIZE = 384

_HELP = {
    "norm": "the network's norm",
    "width": "channels at full resolution",
    "blocks": "residual blocks",
    "steps": "number of steps",
    "batch": "photographs a step",
    "size": "side of a crop, pixels",
    "lr": "learning rate of Adam",
    "style_lr": "learning rate of Adam for the styles",
    "content_weight": "weight of the content loss: how much of the photograph stays",
    "style_weight": "weight of the style loss",
    "sliced_weight": "weight of the sliced loss (colours, edges)",
    "palette_weight": "weight of the distance to the style picture's colours",
    "tv_weight": "weight of the total variation",
    "style_size": "longer side to which the style picture is scaled: its strokes' size",
    "seed": "seed of weights and crops",
    "feature_seed": "seed of the random loss network",
}


def add_settings(
    parser: argparse.ArgumentParser, defaults: DataclassInstance, without: Collection[str] = ()
) -> None:
    """Add an option for every field of a dataclass of settings, but for those in ``without``."""
    for field in dataclasses.fields(defaults):
        if field.name in without:
            continue
        value = getattr(defaults, field.name)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(value),
            default=value,
            choices=tuple(NORMS) if field.name == "norm" else None,
            metavar=None if field.name == "norm" else "N",
            help=f"{_HELP[field.name]}; default {value}",
        )


def read_settings(arguments: argparse.Namespace, defaults: Options) -> Options:
    """Settings from the options that :func:`add_settings` added."""
    names = [field.name for field in dataclasses.fields(defaults) if field.name in arguments]
    found: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    return dataclasses.replace(defaults, **found)


def read_style_picture(name: str) -> StylePicture:
    """Picture in a file, or the drawn picture of this name.

    Raises:
        StylizeError: no such file, or no image.
    """
    if name in ARTWORKS and not Path(name).exists():
        artwork = ARTWORKS[name]
        pixels = to_tensor(draw(name, artwork.seen))
        return StylePicture(pixels, artwork.title, artwork.seen, artwork.content)
    return StylePicture(read_photo(name).rgb, Path(name).name)


def add_training(parser: argparse.ArgumentParser, checkpoint_every: int) -> None:
    """Add the options of every training: photographs, loss network, checkpoint, previews."""
    parser.add_argument(
        "--content",
        metavar="FOLDER",
        help="photographs to train on; default: those inside installed packages",
    )
    parser.add_argument(
        "--vgg",
        metavar="FILE",
        help="torchvision's state_dict of VGG-16 or VGG-19, to compare features of; default: "
        "EfficientNet-Lite0 of the extra [train], or a random network where that is not installed",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="where to save and from where to resume; default: beside OUT",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=positive,
        default=checkpoint_every,
        metavar="N",
        help=f"steps; default {checkpoint_every}",
    )
    parser.add_argument("--restart", action="store_true", help="ignore an earlier checkpoint")
    parser.add_argument(
        "--preview-every", type=positive, metavar="N", help="write OUT-preview-STEP.png every N"
    )


def check_files(out: Path, checkpoint: Path) -> None:
    """Raise unless both files can be written and differ."""
    for file in (out, checkpoint):
        check_folder_of(file)
        if file.is_dir():
            raise StylizeError(f"{file}: is a folder; name a file")
    if checkpoint.resolve() == out.resolve():
        raise StylizeError(f"{checkpoint}: is the style file too; name another --checkpoint")


class Previews:
    """Pictures of one photograph during a training, as files.

    Args:
        content: photographs, of which the first that can be read is painted.
        out: file whose name the previews' names start with.
        every: steps between previews; None for no previews.
        device: where to paint.
    """

    def __init__(
        self, content: Sequence[str], out: Path, every: int | None, device: torch.device
    ) -> None:
        self.out, self.every = out, every
        if every is not None:
            self.photograph = read_first(content, 1, PREVIEW_SIZE)[0][0].to(device)

    def __call__(self, step: int, style: Style) -> None:
        if self.every is not None and step % self.every == 0:
            picture = stylize(self.photograph, style).cpu()
            name = f"{self.out.stem}-preview-{step:05d}.png"
            write_photo(Photo(picture), self.out.with_name(name))
