"""Training: one network for one style picture, in one pass over random crops."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .content import Crops, generator_of
from .errors import StylizeError
from .features import Features, RandomFeatures
from .losses import content_loss, total_variation
from .network import STRIDE, Architecture, Network
from .objective import StyleTarget, scaled
from .styles import Style
from .tensor_files import Kind, TensorFile, open_tensors, write_safetensors

NAME_ANOTHER = "name another one with --checkpoint"
CHECKPOINT = Kind("momentnorm-stylize-checkpoint", 1, "a checkpoint", NAME_ANOTHER)

#: Photographs on which random features are calibrated.
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained, beside the pictures themselves."""

    norm: str = "instance"
    width: int = 16
    blocks: int = 3
    steps: int = 1500
    batch: int = 4
    size: int = 96
    lr: float = 2e-3
    content_weight: float = 0.5
    style_weight: float = 0.5
    sliced_weight: float = 8.0
    tv_weight: float = 0.3
    style_size: int = 256
    seed: int = 0
    feature_seed: int = 0

    def __post_init__(self) -> None:
        Architecture(self.norm, self.width, self.blocks)
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise StylizeError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.size < 32 or self.size % STRIDE:
            raise StylizeError(f"size is {self.size}; a multiple of {STRIDE} from 32 up is needed")
        if self.style_size < 32:
            raise StylizeError(f"style size is {self.style_size}; at least 32 is needed")
        for name in ("seed", "feature_seed"):
            if not 0 <= getattr(self, name) < 2**40:
                raise StylizeError(f"{name} is {getattr(self, name)}; 0 to 2**40 - 1 is needed")
        for name in ("lr", "content_weight", "style_weight", "sliced_weight", "tv_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise StylizeError(f"{name} is {value}; a finite number from 0 up is needed")

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.norm, self.width, self.blocks)


#: Named terms of one step's loss, and their weighted sum as ``loss``.
Losses = dict[str, float]
OnStep = Callable[[int, Losses, Network], None]


def train(
    style_image: Tensor,
    content: Sequence[str],
    settings: Settings | None = None,
    *,
    features: Features | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
    device: str | torch.device = "cpu",
    picture: str = "",
    build: Callable[[Architecture], Network] = Network,
) -> Style | None:
    """Train a network to paint photographs in the manner of a picture.

    The result is a function of the arguments: on a CPU with the same number of threads, the same
    bits, however often the training was interrupted and resumed.

    Args:
        style_image: (3, H, W) in [0, 1].
        content: files of photographs, or ``skimage:NAME``.
        settings: see :class:`Settings`.
        features: the loss network; without one, :class:`RandomFeatures` on the photographs.
        checkpoint: file from which a training goes on, and in which it is saved: every
            ``checkpoint_every`` steps, after the last one, and when it stops.
        on_step: called after every step with its number from 1, its losses, and the network.
        should_stop: asked after every step but the last.
        note: told, in a line, of what went other than planned.
        device: where to train.
        picture: what the style picture is, for the style file.
        build: makes the network to train.

    Returns:
        The style, or None where ``should_stop`` ended it.

    Raises:
        StylizeError: a checkpoint of another training, or a loss that is no longer finite.
    """
    settings = settings or Settings()
    crops = Crops(content, settings.size, settings.seed, note)
    if features is None:
        features = RandomFeatures(crops.batch(0, CALIBRATION_BATCH), settings.feature_seed)
    # Convolutions are faster in this layout.
    features = features.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    style_image = style_image.to(device)
    target = StyleTarget(features, scaled(style_image, settings.style_size))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build(settings.architecture)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    identity = _identity(settings, style_image, crops, features)
    done = 0
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        if checkpoint.exists():
            done = _resume(checkpoint, identity, network, optimizer, settings.steps)

    for step in range(done + 1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(settings, step)
        losses = _step(network, optimizer, target, crops, settings, step, device)
        if not math.isfinite(losses["loss"]):
            raise StylizeError(
                f"the loss is {losses['loss']} at step {step}; train again with a lower --lr"
            )
        if on_step is not None:
            on_step(step, losses, network)
        last = step == settings.steps
        stopping = not last and should_stop()
        if checkpoint is not None and (last or stopping or step % checkpoint_every == 0):
            _save(checkpoint, identity, network, optimizer, step)
        if stopping:
            return None
    return Style(network.eval(), picture=picture, training=json.loads(identity))


def _step(
    network: Network,
    optimizer: torch.optim.Optimizer,
    target: StyleTarget,
    crops: Crops,
    settings: Settings,
    step: int,
    device: str | torch.device,
) -> Losses:
    photographs = crops.batch(step, settings.batch).to(device)
    random = generator_of(settings.seed, step)
    losses = losses_of(network(photographs), photographs, target, settings, random)
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {name: value.item() for name, value in losses.items()}


def losses_of(
    pictures: Tensor,
    photographs: Tensor,
    target: StyleTarget,
    settings: Settings,
    random: torch.Generator,
) -> dict[str, Tensor]:
    """The loss of pictures, (N, 3, H, W), of these photographs, and its terms by name."""
    with torch.no_grad():
        content_target = target.features.content_layer(photographs)
    statistics, sliced = target.losses(pictures, random)
    terms = {
        "style": statistics,
        "sliced": sliced,
        "content": content_loss(target.features.content_layer(pictures), content_target),
        "tv": total_variation(pictures),
    }
    loss = (
        settings.style_weight * terms["style"]
        + settings.sliced_weight * terms["sliced"]
        + settings.content_weight * terms["content"]
        + settings.tv_weight * terms["tv"]
    )
    return {"loss": loss} | terms


def _learning_rate(settings: Settings, step: int) -> float:
    """A cosine down to a twentieth: the last steps settle what the first ones found."""
    share = (step - 1) / settings.steps
    return settings.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def _identity(settings: Settings, style_image: Tensor, crops: Crops, features: Features) -> str:
    """JSON of what makes two trainings the same one."""
    pixels = (style_image * 255).round().byte().cpu().numpy().tobytes()
    known = dataclasses.asdict(settings)
    known["style_picture"] = hashlib.sha256(pixels).hexdigest()[:16]
    known["content"] = crops.fingerprint()
    known["features"] = getattr(features, "name", type(features).__name__)
    return json.dumps(known, sort_keys=True)


def _save(
    path: Path, identity: str, network: Network, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Network and optimizer in one safetensors file, so that the two never disagree."""
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"adam.{index}.{key}"] = value
    metadata = {
        "format": CHECKPOINT.form,
        "version": str(CHECKPOINT.version),
        "step": str(step),
        "training": identity,
    }
    write_safetensors({k: v.detach().cpu() for k, v in tensors.items()}, metadata, path)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, if there is one.

    Raises:
        StylizeError: what is there is another file, which stays.
    """
    if path.exists():
        with open_tensors(path, CHECKPOINT):
            pass
        path.unlink()


def _resume(
    path: Path, identity: str, network: Network, optimizer: torch.optim.Optimizer, steps: int
) -> int:
    """Load what :func:`_save` wrote; the number of steps done.

    Raises:
        StylizeError: a checkpoint of another training, or a damaged one. Network and optimizer
            are as they were.
    """
    with open_tensors(path, CHECKPOINT) as file:
        training = file.metadata.get("training")
        if training != identity:
            changed = _difference(training or "{}", identity)
            raise StylizeError(
                f"{path} is the checkpoint of another training ({changed} differs); "
                f"start over with --restart, or {NAME_ANOTHER}"
            )
        done = _steps_done(file, steps)
        tensors = file.read(_layout(network, optimizer))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = tensor
    for state in states.values():
        if state["step"].item() != done or (state["exp_avg_sq"] < 0).any():
            raise file.error("the optimizer's numbers cannot be those of that many steps")
    prefix = "network."
    network.load_state_dict(
        {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    )
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    return done


def _steps_done(file: TensorFile, steps: int) -> int:
    try:
        done = int(file.metadata["step"])
    except (KeyError, ValueError):
        done = 0
    if not 1 <= done <= steps:
        raise file.error(f"the step is not a number from 1 to {steps}")
    return done


def _layout(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The names, shapes and dtypes that :func:`_save` writes after a step."""
    expected = {f"network.{key}": value for key, value in network.state_dict().items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        expected[f"adam.{index}.step"] = torch.zeros(())
        expected[f"adam.{index}.exp_avg"] = parameter
        expected[f"adam.{index}.exp_avg_sq"] = parameter
    return expected


def _difference(before: str, after: str) -> str:
    try:
        old, new = json.loads(before), json.loads(after)
        names = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    except (ValueError, TypeError, AttributeError, RecursionError):
        names = []
    return ", ".join(names)[:200] or "its metadata"
