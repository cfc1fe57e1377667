"""Learning: a style for any picture on a trained trunk, and a new trunk with its styles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .content import training_photographs
from .loss_network import loss_network
from .styles import Style, bundled_styles, load_style
from .trunk_files import FOLDER, load_trunk, trunk_identity
from .trunk_training import Losses, StylePicture, StyleTraining, TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from .features import Features
    from .trunk import Trunk, TrunkShape

#: Settings with which a style is learned on a trained trunk.
LEARN = TrainingSettings(steps=200)


def learn(
    picture: StylePicture | Tensor,
    content: Sequence[str] | None = None,
    settings: TrainingSettings = LEARN,
    *,
    trunk: Trunk | None = None,
    features: Features | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 25,
    on_step: Callable[[int, Losses, Style], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | torch.device = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> Style | None:
    """Learn the style of a picture on a trained trunk, which stays as it is.

    Args:
        picture: the style picture, (3, H, W) in [0, 1].
        content: files of photographs; without them, those inside installed packages.
        settings: numbers of the training; ``lr``, the rate of a trunk, is not used.
        trunk: the trunk; the bundled one if None.
        features: the loss network; see :func:`loss_network` for the one that is chosen if None.
        checkpoint: file from which the training goes on and in which it is saved.
        checkpoint_every: steps between checkpoints.
        on_step: function that is called after every step with its number from 1, its losses, and
            the style so far.
        should_stop: function that is asked after every step but the last.
        device: where to train.
        note: function that is told, in a line, of a photograph that cannot be read and of a random
            loss network.

    Returns:
        The style, or None if ``should_stop`` ended the training.

    Raises:
        StylizeError: a picture that is too small, a checkpoint of another training, no photographs,
            or a loss that is no longer finite.
    """
    if not isinstance(picture, StylePicture):
        picture = StylePicture(picture)
    trunk = load_trunk() if trunk is None else trunk
    content = training_photographs(None) if content is None else content
    training = StyleTraining(
        {"style": picture},
        content,
        loss_network(None, content, note) if features is None else features,
        settings,
        trunk=trunk,
        start=mean_style(trunk),
        device=device,
        note=note,
    )
    found = training.run(
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_every=checkpoint_every,
        on_step=on_step and (lambda step, losses: on_step(step, losses, _styles(training)[0])),
        should_stop=should_stop,
    )
    return _styles(training)[0] if found else None


def mean_style(trunk: Trunk) -> Tensor | None:
    """Mean of the bundled styles, (S,); None for another trunk than the bundled one."""
    if trunk_identity(trunk) != trunk_identity(load_trunk()):
        return None
    vectors = [load_style(FOLDER / f"{name}.safetensors").vector for name in bundled_styles()]
    return torch.stack(vectors).mean(0)


def train(
    pictures: Mapping[str, StylePicture],
    content: Sequence[str],
    settings: TrainingSettings | None = None,
    *,
    features: Features | None = None,
    shape: TrunkShape | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    on_step: Callable[[int, Losses, list[Style]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | torch.device = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> list[Style] | None:
    """Train a new trunk with a style for each picture.

    The arguments are those of :func:`learn`, with pictures by name and the size of the trunk.

    Returns:
        The styles, whose ``trunk`` is the new one, or None if ``should_stop`` ended the training.

    Raises:
        StylizeError: as :func:`learn`.
    """
    training = StyleTraining(
        pictures,
        content,
        loss_network(None, content, note) if features is None else features,
        settings or TrainingSettings(),
        shape=shape,
        device=device,
        note=note,
    )
    found = training.run(
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        on_step=on_step and (lambda step, losses: on_step(step, losses, _styles(training))),
        should_stop=should_stop,
    )
    return _styles(training) if found else None


def _styles(training: StyleTraining) -> list[Style]:
    vectors = training.styles.detach().cpu()
    return [
        Style(vector, training.trunk, picture=title, name=name)
        for name, title, vector in zip(training.names, training.titles, vectors, strict=True)
    ]
