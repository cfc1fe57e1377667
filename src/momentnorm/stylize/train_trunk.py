"""Train the bundled trunk: ``python -m momentnorm.stylize.train_trunk CHECKPOINT``.

Run again with the same file, it goes on where it stopped. ``--sheet`` writes the contact sheet of a
checkpoint, ``--export`` its trunk and styles as files.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .artworks import ARTWORKS, draw
from .efficientnet import load_efficientnet
from .errors import StylizeError
from .images import SKIMAGE_PHOTOS, make_folder, read_photo, to_image, to_tensor
from .painting import paint
from .trunk import TrunkShape
from .trunk_files import TRUNK_FILE, TrunkStyle, save_trunk, save_trunk_style, trunk_identity
from .trunk_training import TrunkSettings, TrunkTraining, read_checkpoint

#: Photographs that no training sees, so that the eye can judge on them.
HELD_OUT = ("astronaut", "coffee")
#: Photographs inside other wheels.
ELSEWHERE = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/color.png"),
)
#: Photographs that come three times as often: a scene teaches more than a plane of gravel.
_SCENES = (
    "skimage:chelsea",
    "skimage:rocket",
    "skimage:camera",
    "china.jpg",
    "flower.jpg",
    "grace_hopper.jpg",
    "motorcycle_left.png",
)
#: Losses in the lines of a training, in this order.
SHOWN_LOSSES = ("style", "content", "palette")
SHOWN = ("astronaut", "coffee", "chelsea", "rocket")


def photographs() -> list[str]:
    """Files of the photographs to train on, some of them more than once.

    Raises:
        StylizeError: a package that carries some is not installed.
    """
    found = [f"skimage:{name}" for name in SKIMAGE_PHOTOS if name not in HELD_OUT]
    for package, name in ELSEWHERE:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise StylizeError(f"the photographs of {package} are missing: pip install {package}")
        found.append(str(Path(spec.origin).parent / name))
    scenes = [file for file in found if Path(file).name in _SCENES or file.startswith(_SCENES)]
    return found + 2 * scenes


def build(options: argparse.Namespace) -> TrunkTraining:
    """The training that the options describe, at its first step."""
    settings = TrunkSettings(
        steps=options.steps,
        batch=options.batch,
        size=options.size,
        lr=options.lr,
        style_lr=5 * options.lr,
    )
    names = options.only
    if names is None and options.checkpoint.exists():
        names = read_checkpoint(options.checkpoint)["names"]
    pictures = {name: to_tensor(draw(name, ARTWORKS[name].seen)) for name in names or ARTWORKS}
    given = dict(pair.split("=") for pair in options.weight)
    weights = {name: float(given.get(name, ARTWORKS[name].content)) for name in pictures}
    return TrunkTraining(
        pictures,
        photographs(),
        load_efficientnet(),
        TrunkShape(),
        settings,
        weights,
    )


def run(training: TrunkTraining, checkpoint: Path, every: float) -> None:
    """Train to the last step; a line of losses and a checkpoint every so many seconds."""
    saved = time.monotonic()
    sums = torch.zeros(len(SHOWN_LOSSES), len(training.names))
    counts = torch.zeros(len(training.names))
    start, first = time.monotonic(), training.done
    while training.done < training.settings.steps:
        losses = training.step()
        for row, name in zip(sums, SHOWN_LOSSES, strict=True):
            row.index_add_(0, losses["labels"], losses[name])
        counts.index_add_(0, losses["labels"], torch.ones(len(losses["labels"])))
        if training.done % 50 == 0:
            means = (sums / counts.clamp_min(1)).tolist()
            each = " ".join(
                f"{name}:" + "/".join(f"{value:.2f}" for value in values)
                for name, *values in zip(training.names, *means, strict=True)
            )
            pace = (time.monotonic() - start) / (training.done - first)
            print(
                f"{training.done} {pace:.2f}s {sum(means[0]) / len(means[0]):.3f} {each}",
                flush=True,
            )
            sums.zero_()
            counts.zero_()
        if time.monotonic() - saved > every:
            training.save(checkpoint)
            saved = time.monotonic()
    training.save(checkpoint)


def sheet(training: TrunkTraining, path: Path, cell: int) -> None:
    """Write a table, two styles a row: the style picture, then photographs in that style.

    Photographs are painted with sides of two cells, and shown in one.
    """
    shown = [_square(read_photo(f"skimage:{name}").rgb, 2 * cell) for name in SHOWN]
    strips = []
    for name, vector in zip(training.names, training.styles.detach(), strict=True):
        cells = [to_tensor(draw(name, 2 * cell))]
        cells += [paint(training.trunk, photo, vector) for photo in shown]
        strips.append(F.avg_pool2d(torch.cat(cells, 2), 2))
    if len(strips) % 2:
        strips.append(torch.ones_like(strips[0]))
    rows = [torch.cat(pair, 2) for pair in zip(strips[::2], strips[1::2], strict=True)]
    to_image(torch.cat(rows, 1)).save(path, quality=82)


def _square(image: Tensor, side: int) -> Tensor:
    """The middle of (3, H, W), scaled to (3, side, side)."""
    short = min(image.shape[-2:])
    top, left = (image.shape[-2] - short) // 2, (image.shape[-1] - short) // 2
    middle = image[:, top : top + short, left : left + short].unsqueeze(0)
    return F.interpolate(middle, (side, side), mode="bilinear", antialias=True).squeeze(0)


def export(training: TrunkTraining, folder: Path) -> None:
    """Write ``trunk.safetensors`` and one file for each style."""
    make_folder(folder)
    trunk = training.trunk
    save_trunk(trunk, folder / TRUNK_FILE.name)
    identity = trunk_identity(trunk)
    for name, vector in zip(training.names, training.styles.detach(), strict=True):
        style = TrunkStyle(vector, identity, picture=ARTWORKS[name].title)
        save_trunk_style(style, folder / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight", action="append", default=[], metavar="STYLE=CONTENT")
    parser.add_argument("--only", nargs="+", metavar="STYLE", help="default: the checkpoint's")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, metavar="FOLDER")
    parser.add_argument("--sheet", type=Path, metavar="FILE")
    parser.add_argument("--cell", type=int, default=192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        training = build(options)
        if options.checkpoint.exists():
            training.load(options.checkpoint)
    except StylizeError as error:
        parser.error(str(error))
    if options.export is not None:
        export(training, options.export)
    if options.sheet is not None:
        sheet(training, options.sheet, options.cell)
    if options.export is not None or options.sheet is not None:
        return
    # A request to end is treated as Ctrl-C: the last steps are saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(training, options.checkpoint, options.every)
    except KeyboardInterrupt:
        training.save(options.checkpoint)


if __name__ == "__main__":
    main()
