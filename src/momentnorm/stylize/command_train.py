"""``momentnorm stylize train``: a new trunk, with a style for each of many pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import add_device, find_device
from ..support.terminal import print_path, say
from .artworks import ARTWORKS
from .checkpoints import remove_checkpoint
from .command_learn import with_bar, write_or_keep
from .content import training_photographs
from .errors import PROGRAM, StylizeError
from .images import make_folder, photos_in
from .learning import train
from .loss_network import loss_network
from .options import Previews, add_settings, add_training, read_settings, read_style_picture
from .styles import Style, save_style
from .trunk import TrunkShape
from .trunk_files import TRUNK_NAME, save_trunk
from .trunk_training import StylePicture, TrainingSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DEFAULTS = TrainingSettings()
SHAPE = TrunkShape()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help=f"image files, folders of them, or {', '.join(ARTWORKS)}",
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="FOLDER",
        help=f"{TRUNK_NAME} and a style for each picture; made if needed",
    )
    parser.add_argument("--width", type=int, default=SHAPE.width, metavar="N")
    parser.add_argument("--blocks", type=int, default=SHAPE.blocks, metavar="N")
    add_training(parser, checkpoint_every=100)
    add_settings(parser, DEFAULTS)
    add_device(parser)


def read_pictures(names: Sequence[str]) -> dict[str, StylePicture]:
    """Style pictures by the names that their styles will have.

    Raises:
        StylizeError: no such file, no image, or two pictures of one name.
    """
    files: list[str] = []
    for name in names:
        folder = Path(name)
        files += [str(file) for file in photos_in(folder)] if folder.is_dir() else [name]
    pictures: dict[str, StylePicture] = {}
    for file in files:
        name = Path(file).stem
        if name in pictures or f"{name}.safetensors" == TRUNK_NAME:
            raise StylizeError(f"{file}: a style is named {name!r} already; rename the file")
        pictures[name] = read_style_picture(file)
    if not pictures:
        raise StylizeError(f"{names[0]}: no image files in this folder; check the name")
    return pictures


def run(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    checkpoint = Path(arguments.checkpoint or out / "checkpoint.safetensors")
    settings = read_settings(arguments, DEFAULTS)
    shape = TrunkShape(arguments.width, arguments.blocks)
    device = find_device(arguments.device)
    pictures = read_pictures(arguments.pictures)
    content = training_photographs(arguments.content)
    note = partial(say, PROGRAM)
    features = loss_network(arguments.vgg, content, note)
    make_folder(out)
    previews = Previews(content, out / "styles", arguments.preview_every, device)
    if arguments.restart:
        remove_checkpoint(checkpoint)
    styles = with_bar(
        settings,
        checkpoint,
        lambda **watched: train(
            pictures,
            content,
            settings,
            features=features,
            shape=shape,
            checkpoint=checkpoint,
            checkpoint_every=arguments.checkpoint_every,
            device=device,
            note=note,
            **watched,
        ),
        lambda step, found: previews(step, found[step % len(found)]),
    )
    if styles is None:
        return 130
    write_or_keep(lambda: _write(styles, out), checkpoint)
    print_path(out)
    return 0


def _write(styles: list[Style], folder: Path) -> None:
    save_trunk(styles[0].trunk, folder / TRUNK_NAME)
    for style in styles:
        save_style(style, folder / f"{style.name}.safetensors")
