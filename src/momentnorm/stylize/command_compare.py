"""``momentnorm stylize compare``: one training with two norms, as numbers and pictures."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..support.arguments import add_device, find_device
from ..support.packages import require
from ..support.terminal import print_path, progress, say
from .apply import stylize
from .content import Crops, content_files, read_first
from .errors import PROGRAM
from .features import RandomFeatures
from .images import make_folder, whole_file
from .losses import style_loss, style_statistics
from .objective import scaled
from .options import add_settings, read_settings, read_style_picture
from .sheet import save_sheet
from .trainer import CALIBRATION_BATCH, Losses, Settings, train

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from rich.progress import Progress, TaskID

    from .network import Network

NORMS = ("instance", "batch")
NAMES = {"instance": "instance norm", "batch": "batch norm"}
CONTRASTS = (1.0, 0.5, 0.25)
DEFAULTS = Settings(steps=350, lr=1e-3)
QUICK = {"steps": 30, "size": 64, "style_size": 128}
TEST_SIZE = 256


class Finding(NamedTuple):
    """Style loss of pictures of photographs with a changed contrast."""

    norm: str
    contrast: float
    style_loss: float


def change_contrast(image: Tensor, factor: float) -> Tensor:
    """Image with its contrast changed about mid-grey: 0.5 + factor (image - 0.5)."""
    return 0.5 + factor * (image - 0.5)


def hold_out(
    files: Sequence[str], size: int, note: Callable[[str], None] = lambda text: None
) -> tuple[list[str], list[Tensor]]:
    """Files to train on, and up to three other photographs to judge by, as :func:`read_first`.

    One photograph alone is for both.
    """
    photographs, others = read_first(files, max(1, min(3, len(files) // 2)), size, note)
    return others or list(files), photographs


def measure_changes(
    network: Network,
    features: RandomFeatures,
    style_image: Tensor,
    photographs: Sequence[Tensor],
    changes: Sequence[Callable[[Tensor], Tensor]],
) -> tuple[list[float], list[list[Tensor]]]:
    """Measure each change of the photographs: the mean style loss over them, and the pictures.

    Args:
        style_image: (3, H, W) in [0, 1], at the size at which it was trained for.
        photographs: (3, H, W) in [0, 1] each.
        changes: functions of a photograph, such as :func:`change_contrast`.
    """
    losses, pictures = [], []
    with torch.no_grad():
        targets = [style_statistics(x) for x in features.style_layers(style_image.unsqueeze(0))]
        for change in changes:
            row = [stylize(change(photo), network) for photo in photographs]
            found = [style_loss(features.style_layers(x.unsqueeze(0)), targets) for x in row]
            losses.append(torch.stack(found).mean().item())
            pictures.append(row)
    return losses, pictures


def measure_contrast(
    network: Network,
    features: RandomFeatures,
    style_image: Tensor,
    photographs: Sequence[Tensor],
    contrasts: Sequence[float] = CONTRASTS,
) -> tuple[list[float], list[list[Tensor]]]:
    """Measure changes of the contrast, as :func:`measure_changes` does."""
    changes = [functools.partial(change_contrast, factor=contrast) for contrast in contrasts]
    return measure_changes(network, features, style_image, photographs, changes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="made if needed")
    parser.add_argument("--style", default="mosaic", metavar="IMAGE", help="default: mosaic")
    parser.add_argument("--content", metavar="FOLDER", help="as in train")
    parser.add_argument("--quick", action="store_true", help=f"a small one: {QUICK}")
    add_settings(parser, DEFAULTS, without=("norm",))
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    require("matplotlib", "stylize compare")
    out = Path(arguments.out)
    settings = read_settings(arguments, DEFAULTS)
    if arguments.quick:
        smaller: dict[str, Any] = {
            name: value
            for name, value in QUICK.items()
            if getattr(settings, name) == getattr(DEFAULTS, name)
        }
        settings = dataclasses.replace(settings, **smaller)
    device = find_device(arguments.device)
    picture = read_style_picture(arguments.style).rgb
    note = functools.cache(partial(say, PROGRAM))  # each photograph that is left out is named once
    training_files, photographs = hold_out(content_files(arguments.content), TEST_SIZE, note)
    tests = [photograph.to(device) for photograph in photographs]
    # One loss network for all, so that their losses can be compared.
    features = RandomFeatures(
        Crops(training_files, settings.size, settings.seed, note).batch(0, CALIBRATION_BATCH),
        settings.feature_seed,
    ).to(device)
    style_image = scaled(picture.to(device), settings.style_size)
    make_folder(out)

    history: list[dict[str, Any]] = []
    findings: list[Finding] = []
    pictures: dict[str, list[list[Tensor]]] = {}
    with progress("losses") as bar:
        for norm in NORMS:
            trained = dataclasses.replace(settings, norm=norm)
            task = bar.add_task(NAMES[norm], total=settings.steps, losses="")
            network, steps = _train(
                picture, training_files, trained, features, device, note, bar, task
            )
            history += steps
            losses, pictures[norm] = measure_contrast(network, features, style_image, tests)
            findings += [Finding(norm, c, x) for c, x in zip(CONTRASTS, losses, strict=True)]

    write_csv(history, out / "losses.csv")
    write_csv([finding._asdict() for finding in findings], out / "contrast.csv")
    plot(history, findings, settings, out / "compare.png")
    save_sheet(_rows(tests[0], pictures, findings), out / "contrast.png")
    for finding in findings:
        print(
            f"{NAMES[finding.norm]:14} contrast {finding.contrast:<5} "
            f"style loss {finding.style_loss:.3f}"
        )
    print_path(out)
    return 0


def _train(
    picture: Tensor,
    files: Sequence[str],
    settings: Settings,
    features: RandomFeatures,
    device: torch.device,
    note: Callable[[str], None],
    bar: Progress,
    task: TaskID,
) -> tuple[Network, list[dict[str, Any]]]:
    """Train a network; also the losses of its steps."""
    history: list[dict[str, Any]] = []

    def on_step(step: int, losses: Losses, network: Network) -> None:
        history.append({"norm": settings.norm, "step": step, **losses})
        bar.update(task, completed=step, losses=f"style {losses['style']:.3f}")

    network = train(
        picture, files, settings, features=features, on_step=on_step, note=note, device=device
    )
    return network, history


def _rows(
    photograph: Tensor, pictures: dict[str, list[list[Tensor]]], findings: Sequence[Finding]
) -> list[list[tuple[str, Tensor]]]:
    rows = [[(f"photograph, contrast {c}", change_contrast(photograph, c)) for c in CONTRASTS]]
    for norm in NORMS:
        losses = [finding.style_loss for finding in findings if finding.norm == norm]
        rows.append(
            [
                (f"{NAMES[norm]}, style loss {loss:.2f}", row[0])
                for loss, row in zip(losses, pictures[norm], strict=True)
            ]
        )
    return rows


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def plot(
    history: Sequence[dict[str, Any]],
    findings: Sequence[Finding],
    settings: Settings,
    path: Path,
) -> None:
    """Loss curves on the left, style loss against contrast on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, contrast = figure.subplots(1, 2)
    for norm, colour in zip(NORMS, ("tab:blue", "tab:red"), strict=True):
        points = [row for row in history if row["norm"] == norm]
        steps = [row["step"] for row in points]
        values = [row["loss"] for row in points]
        curves.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        curves.plot(steps, smoothed(values), color=colour, label=NAMES[norm])
        found = [finding for finding in findings if finding.norm == norm]
        contrast.plot(
            [f"{finding.contrast:g}" for finding in found],
            [finding.style_loss for finding in found],
            marker="o",
            color=colour,
            label=NAMES[norm],
        )
    curves.set(xlabel="step", ylabel="training loss", yscale="log")
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_formatter("{x:g}")
    curves.set_title(f"batch {settings.batch}, {settings.size}-pixel crops, seed {settings.seed}")
    contrast.set(xlabel="contrast of the photograph", ylabel="style loss")
    contrast.set_ylim(bottom=0)
    contrast.set_title("after training, on photographs held out")
    for axes in (curves, contrast):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def smoothed(values: Sequence[float], half_life: float = 10.0) -> list[float]:
    """Exponential average, corrected so that the first values do not tend to zero."""
    keep = 0.5 ** (1 / half_life)
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result
