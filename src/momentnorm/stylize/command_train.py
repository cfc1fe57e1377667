"""``momentnorm stylize train``: a style file from a picture and photographs."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import add_device, find_device, positive
from ..support.terminal import print_path, progress, say, stop_requested
from .apply import stylize
from .artworks import ARTWORKS, draw
from .content import content_files, read_first
from .errors import PROGRAM, StylizeError
from .features import load_vgg
from .images import Photo, check_folder_of, read_photo, to_tensor, write_photo
from .network import NORMS, Network
from .styles import save_style
from .trainer import Losses, Settings, remove_checkpoint, train

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection

    from torch import Tensor

PREVIEW_SIZE = 384

_HELP = {
    "norm": "the network's norm",
    "width": "channels at full resolution",
    "blocks": "residual blocks",
    "steps": "number of steps",
    "batch": "photographs a step",
    "size": "side of a crop, pixels",
    "lr": "learning rate of Adam at the start",
    "content_weight": "weight of the content loss",
    "style_weight": "weight of the style loss",
    "sliced_weight": "weight of the sliced loss (colours, edges)",
    "tv_weight": "weight of the total variation",
    "style_size": "longer side to which the style picture is scaled: its strokes' size",
    "seed": "of weights and crops",
    "feature_seed": "of the random loss network",
}


def add_settings(
    parser: argparse.ArgumentParser, defaults: Settings, without: Collection[str] = ()
) -> None:
    """An option for every field of :class:`Settings` but those."""
    for field in dataclasses.fields(Settings):
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


def read_settings(arguments: argparse.Namespace) -> Settings:
    names = [field.name for field in dataclasses.fields(Settings) if field.name in arguments]
    return Settings(**{name: getattr(arguments, name) for name in names})


def read_style_picture(name: str) -> tuple[Tensor, str]:
    """A file's pixels, (3, H, W), or those of the drawn picture of this name; and what it is."""
    if name in ARTWORKS and not Path(name).exists():
        return to_tensor(draw(name)), ARTWORKS[name].title
    return read_photo(name).rgb, Path(name).name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--style",
        required=True,
        metavar="IMAGE",
        help=f"the style picture: an image file, or {', '.join(ARTWORKS)}",
    )
    parser.add_argument(
        "--content",
        metavar="FOLDER",
        help="photographs to train on; default: those inside the scikit-image package",
    )
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="MY.safetensors")
    parser.add_argument(
        "--vgg",
        metavar="FILE",
        help="torchvision's state_dict of VGG-16 or VGG-19, to compare features of; "
        "default: a random network, which needs no file",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="where to save and from where to resume; default: beside OUT",
    )
    parser.add_argument(
        "--checkpoint-every", type=positive, default=50, metavar="N", help="steps; default 50"
    )
    parser.add_argument("--restart", action="store_true", help="ignore an earlier checkpoint")
    parser.add_argument(
        "--preview-every", type=positive, metavar="N", help="write OUT-preview-STEP.png every N"
    )
    add_settings(parser, Settings())
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    if out.suffix != ".safetensors":
        raise StylizeError(f"{out}: a style file's name ends in .safetensors")
    checkpoint = Path(arguments.checkpoint or out.with_suffix(".checkpoint.safetensors"))
    for file in (out, checkpoint):
        check_folder_of(file)
        if file.is_dir():
            raise StylizeError(f"{file}: is a folder; name a file")
    if checkpoint.resolve() == out.resolve():
        raise StylizeError(f"{checkpoint}: is the style file too; name another --checkpoint")
    settings = read_settings(arguments)
    device = find_device(arguments.device)
    picture, title = read_style_picture(arguments.style)
    content = content_files(arguments.content)
    features = load_vgg(arguments.vgg) if arguments.vgg else None
    example = read_first(content, 1, PREVIEW_SIZE)[0][0] if arguments.preview_every else None
    if arguments.restart:
        remove_checkpoint(checkpoint)

    last = 0
    with progress("losses") as bar, stop_requested() as should_stop:
        task = bar.add_task("training", total=settings.steps, losses="")

        def on_step(step: int, losses: Losses, network: Network) -> None:
            nonlocal last
            last = step
            bar.update(task, completed=step, losses=_losses_text(losses))
            if example is not None and step % arguments.preview_every == 0:
                network.eval()
                preview = stylize(example.to(device), network).cpu()
                network.train()
                write_photo(Photo(preview), out.with_name(f"{out.stem}-preview-{step:05d}.png"))

        style = train(
            picture,
            content,
            settings,
            features=features,
            checkpoint=checkpoint,
            checkpoint_every=arguments.checkpoint_every,
            on_step=on_step,
            should_stop=should_stop,
            note=partial(say, PROGRAM),
            device=device,
            picture=title,
        )
    if style is None:
        say(
            PROGRAM,
            f"stopped after step {last} of {settings.steps}, saved in {checkpoint}; "
            "the same command goes on from there",
        )
        return 130
    try:
        save_style(style, out)
    except StylizeError as error:
        kept = f"the training is kept, go on with --checkpoint {checkpoint}"
        raise StylizeError(f"{error}; {kept}") from error
    checkpoint.unlink(missing_ok=True)
    print_path(out)
    return 0


def _losses_text(losses: Losses) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in losses.items() if name != "tv")
