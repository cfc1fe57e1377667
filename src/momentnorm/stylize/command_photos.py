"""``momentnorm stylize PHOTO...``: photographs from files to files, and the list of styles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..support.arguments import find_device
from ..support.terminal import print_path, progress, say
from .apply import stylize
from .errors import PROGRAM, StylizeError
from .images import (
    WRITABLE,
    Photo,
    check_folder_of,
    check_output,
    make_folder,
    photos_in,
    read_photo,
    write_photo,
)
from .sheet import example, print_styles, style_sheet
from .style_argument import style_of
from .styles import Style

if TYPE_CHECKING:
    import argparse


class Job(NamedTuple):
    source: str
    target: Path


def plan(sources: list[str], out: Path, force: bool) -> list[Job]:
    """Pairs of a photograph and its output file. OUT is a folder where there can be several.

    Raises:
        StylizeError: an unknown suffix, an empty folder, several photographs into one file, or a
            file that would be replaced.
    """
    files: list[str] = []
    for source in sources:
        if not source.startswith("skimage:") and Path(source).is_dir():
            found = photos_in(Path(source))
            if not found:
                raise StylizeError(f"{source}: no image files in this folder; check the name")
            files.extend(str(file) for file in found)
        else:
            files.append(source)
    several = len(sources) > 1 or files != sources
    if several and not out.is_dir() and (out.exists() or out.suffix.lower() in WRITABLE):
        raise StylizeError(
            f"{out}: names a file; several photographs need a folder, name one with -o"
        )
    if several or out.is_dir():
        jobs = _into_folder(files, out)
    else:
        check_output(out)
        check_folder_of(out)
        jobs = [Job(files[0], out)]
    if not force:
        _refuse_to_replace(jobs)
    return jobs


def _into_folder(files: list[str], folder: Path) -> list[Job]:
    jobs: list[Job] = []
    taken: set[str] = set()
    for file in files:
        path = Path(file.removeprefix("skimage:"))
        suffix = path.suffix if path.suffix.lower() in WRITABLE else ".png"
        name, number = path.stem + suffix, 1
        while name.lower() in taken:  # some file systems do not tell cases apart
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name.lower())
        jobs.append(Job(file, folder / name))
    return jobs


def _refuse_to_replace(jobs: list[Job]) -> None:
    for job in jobs:
        if os.path.lexists(job.target):  # a link that leads nowhere is there too
            raise StylizeError(
                f"{job.target}: is there already; choose another -o, or add --force to replace it"
            )


def run(arguments: argparse.Namespace) -> int:
    """Paint all photographs. One that fails does not stop the others."""
    if not 0 <= arguments.strength <= 1:
        raise StylizeError(f"--strength is between 0 and 1, not {arguments.strength}")
    device = find_device(arguments.device)
    jobs = plan(arguments.photos, Path(arguments.out), arguments.force)
    style = style_of(arguments.style, device)
    if style is None:  # learning it was stopped
        return 130
    make_folder(jobs[0].target.parent)
    failed: list[str] = []
    with progress() as bar:
        task = bar.add_task("stylizing", total=len(jobs))
        for job in jobs:
            try:
                _one(job, style, device, arguments)
                print_path(job.target)
            except StylizeError as error:
                if len(jobs) == 1:
                    raise
                failed.append(job.source)
                say(PROGRAM, f"error: {error}")
            bar.advance(task)
    if failed:
        raise StylizeError(
            f"{len(failed)} of {len(jobs)} photographs failed, the others are done: "
            + ", ".join(failed)
        )
    return 0


def list_styles(arguments: argparse.Namespace) -> int:
    """Print the bundled styles; with ``-o``, save a sheet of a photograph in every style."""
    if len(arguments.photos) > 1:
        raise StylizeError("--list takes one PHOTO; leave the others out")
    if arguments.out:
        out = Path(arguments.out)
        check_output(out)
        check_folder_of(out)
        source = arguments.photos[0] if arguments.photos else None
        if not arguments.force:
            _refuse_to_replace([Job(source or "", out)])
        style_sheet(example() if source is None else read_photo(source).rgb, out)
        print_path(out)
    else:
        print_styles()
    return 0


def _one(job: Job, style: Style, device: torch.device, arguments: argparse.Namespace) -> None:
    photo = read_photo(job.source, arguments.size)
    seen = photo.rgb.to(device)
    if photo.alpha is not None:
        seen = _without_hidden(seen, photo.alpha.to(device))
    picture = stylize(seen, style, keep_color=arguments.keep_color)
    # Mixed with the photograph itself, so that strength 0 gives it back where it is transparent.
    mixed = torch.lerp(photo.rgb, picture.cpu(), arguments.strength)
    write_photo(Photo(mixed, photo.alpha, photo.icc_profile, photo.exif), job.target)


def _without_hidden(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replace colours under transparency, (3, H, W), by the mean colour of what is visible."""
    mean = (rgb * alpha).sum((1, 2)) / alpha.sum().clamp_min(1e-6)  # (3,)
    return rgb * alpha + mean.view(3, 1, 1) * (1 - alpha)
