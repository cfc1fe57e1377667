"""``momentnorm stylize learn``: a style file from a picture, on a trained trunk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.arguments import add_device, find_device
from ..support.terminal import print_path, progress, say, stop_requested
from .artworks import ARTWORKS
from .checkpoints import remove_checkpoint
from .content import training_photographs
from .errors import PROGRAM, StylizeError
from .learning import LEARN, learn
from .loss_network import loss_network
from .options import (
    Previews,
    add_settings,
    add_training,
    check_files,
    read_settings,
    read_style_picture,
)
from .styles import save_style
from .trunk_files import load_trunk

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from .trunk_training import Losses, TrainingSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "picture",
        metavar="PICTURE",
        help=f"the style picture: an image file, or {', '.join(ARTWORKS)}",
    )
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="MY.safetensors")
    parser.add_argument(
        "--trunk", metavar="FILE", help="a trunk from stylize train; default: the bundled trunk"
    )
    add_training(parser, checkpoint_every=25)
    add_settings(parser, LEARN, without=("lr",))
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    out = Path(arguments.out)
    if out.suffix != ".safetensors":
        raise StylizeError(f"{out}: a style file's name ends in .safetensors")
    checkpoint = Path(arguments.checkpoint or out.with_suffix(".checkpoint.safetensors"))
    check_files(out, checkpoint)
    settings = read_settings(arguments, LEARN)
    device = find_device(arguments.device)
    picture = read_style_picture(arguments.picture)
    trunk = load_trunk(arguments.trunk)
    content = training_photographs(arguments.content)
    note = partial(say, PROGRAM)
    features = loss_network(arguments.vgg, content, note)
    previews = Previews(content, out, arguments.preview_every, device)
    if arguments.restart:
        remove_checkpoint(checkpoint)
    style = with_bar(
        settings,
        checkpoint,
        lambda **watched: learn(
            picture,
            content,
            settings,
            trunk=trunk,
            features=features,
            checkpoint=checkpoint,
            checkpoint_every=arguments.checkpoint_every,
            device=device,
            note=note,
            **watched,
        ),
        previews,
    )
    if style is None:
        return 130
    write_or_keep(lambda: save_style(style, out), checkpoint)
    print_path(out)
    return 0


def with_bar(
    settings: TrainingSettings,
    checkpoint: Path,
    training: Callable[..., Any],
    previews: Callable[[int, Any], None] = lambda step, result: None,
) -> Any:
    """Run a training with a progress bar; its result, or None after Ctrl-C, which is said.

    Args:
        settings: settings of the training.
        checkpoint: its checkpoint.
        training: function that takes ``on_step`` and ``should_stop``.
        previews: function that is called with the number of a step and the result so far.
    """
    last = 0
    with progress("losses") as bar, stop_requested() as should_stop:
        task = bar.add_task("learning", total=settings.steps, losses="")

        def on_step(step: int, losses: Losses, result: Any) -> None:
            nonlocal last
            last = step
            text = " ".join(f"{name} {losses[name]:.2f}" for name in ("style", "content"))
            bar.update(task, completed=step, losses=text)
            previews(step, result)

        found = training(on_step=on_step, should_stop=should_stop)
    if found is None:
        say(
            PROGRAM,
            f"stopped after step {last} of {settings.steps}, saved in {checkpoint}; "
            "the same command goes on from there",
        )
    return found


def write_or_keep(write: Callable[[], None], checkpoint: Path) -> None:
    """Write a training's result and delete its checkpoint, which stays where writing fails.

    Raises:
        StylizeError: the result cannot be written.
    """
    try:
        write()
    except StylizeError as error:
        kept = f"the training is kept, go on with --checkpoint {checkpoint}"
        raise StylizeError(f"{error}; {kept}") from error
    checkpoint.unlink(missing_ok=True)
