"""Whole networks with torch's InstanceNorm, with ours, and with none: what normalization costs.

Two that live on it: the generator of CycleGAN (Zhu et al., arXiv 1703.10593: nine residual blocks,
for images of 256 x 256), and a residual U-Net for volumes in the manner of nnU-Net (Isensee et al.,
arXiv 1809.10486 and 2404.09556), shortened to two blocks a stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

import momentnorm

from .timing import interleaved

#: Negative slope of nnU-Net's LeakyReLU.
SLOPE = 0.01

#: Kinds of normalization, by the names of the times in a row.
NORMS = ("none", "torch", "ours", "fused")

#: Tolerance of the outputs, relative to the largest: rounding grows through thirty layers.
TOLERANCE = 1e-4

NOTES = f"""\
- The generator of CycleGAN, and a residual U-Net in the manner of nnU-Net, as in
  `benchmarks/networks.py`.
- *none*: the same network without normalization. The *share* is what normalization takes of the
  whole: (time - none) / time.
- *fused*: our layers do the activation behind them too, and the sum of a residual block. Without
  normalization both are done apart, so this share can fall below zero.
- *forward* is in inference mode; *training* is forward, loss, backward and a step of SGD.
- With the same weights, all outputs were within {TOLERANCE:.0e} of torch's (of the largest value).
"""


@dataclass(frozen=True)
class Row:
    """Median seconds of one pass of one network."""

    network: str
    layout: str
    task: str
    none: float
    torch: float
    ours: float
    fused: float

    def share(self, field: str) -> float:
        """Which part of the pass normalization takes."""
        time: float = getattr(self, field)
        return (time - self.none) / time


class Unit(nn.Module):
    """Convolution, normalization, then a residual to add, then an activation (relu: slope 0)."""

    def __init__(
        self, norm: str, convolution: _ConvNd, affine: bool = False, slope: float | None = None
    ) -> None:
        super().__init__()
        self.fused = norm == "fused"
        self.slope = slope
        self.convolution = convolution
        self.norm = _norm(norm, convolution, affine, slope)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = self.convolution(x)
        if self.fused:
            fused: Tensor = self.norm(x, residual=residual)
            return fused
        x = self.norm(x)
        if residual is not None:
            x += residual
        if self.slope is not None:
            x = F.leaky_relu_(x, self.slope) if self.slope else F.relu_(x)
        return x


def _norm(norm: str, convolution: _ConvNd, affine: bool, slope: float | None) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    volumes = isinstance(convolution, (nn.Conv3d, nn.ConvTranspose3d))
    library = nn if norm == "torch" else momentnorm
    layer: type[nn.Module] = library.InstanceNorm3d if volumes else library.InstanceNorm2d
    activation: dict[str, object] = {}
    if norm == "fused" and slope is not None:
        activation = {"activation": ("leaky_relu", slope)}
        if not slope:
            activation = {"activation": "relu"}
    return layer(convolution.out_channels, affine=affine, **activation)


class Residual(nn.Module):
    """Two units, and what they are given (or ``skip`` of it) added before the last activation."""

    def __init__(self, first: Unit, second: Unit, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.skip = nn.Identity() if skip is None else skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x), self.skip(x))
        return y


def generator(norm: str, width: int = 64, blocks: int = 9) -> nn.Module:
    """CycleGAN's: c7s1-64, d128, d256, R256 nine times, u128, u64, c7s1-3."""

    def reflecting(inputs: int, outputs: int, size: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode="reflect")

    def down(inputs: int) -> nn.Module:
        return Unit(norm, nn.Conv2d(inputs, 2 * inputs, 3, stride=2, padding=1), slope=0)

    def residual(channels: int) -> nn.Module:
        return Residual(
            Unit(norm, reflecting(channels, channels, 3), slope=0),
            Unit(norm, reflecting(channels, channels, 3)),
        )

    def up(inputs: int) -> nn.Module:
        convolution = nn.ConvTranspose2d(inputs, inputs // 2, 3, 2, padding=1, output_padding=1)
        return Unit(norm, convolution, slope=0)

    return nn.Sequential(
        Unit(norm, reflecting(3, width, 7), slope=0),
        down(width),
        down(2 * width),
        *(residual(4 * width) for _ in range(blocks)),
        up(4 * width),
        up(2 * width),
        reflecting(width, 3, 7),
        nn.Tanh(),
    )


class UNet(nn.Module):
    """A residual U-Net for volumes: one block in the first stage, two in each of the others."""

    def __init__(
        self, norm: str, features: tuple[int, ...] = (32, 64, 128, 256, 320), classes: int = 4
    ) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, size: int, stride: int, slope: float | None) -> Unit:
            convolution = nn.Conv3d(inputs, outputs, size, stride, padding=size // 2)
            return Unit(norm, convolution, affine=True, slope=slope)

        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            skip = None
            if stride > 1:
                skip = nn.Sequential(nn.AvgPool3d(stride), unit(inputs, outputs, 1, 1, None))
            first = unit(inputs, outputs, 3, stride, SLOPE)
            return Residual(first, unit(outputs, outputs, 3, 1, SLOPE), skip)

        def up(inputs: int, outputs: int) -> nn.Module:
            return nn.ConvTranspose3d(inputs, outputs, 2, stride=2)

        steps = list(itertools.pairwise(features))
        first = features[0]
        self.stem = nn.Sequential(unit(1, first, 3, 1, SLOPE), block(first, first, 1))
        self.down = nn.ModuleList(nn.Sequential(block(a, b, 2), block(b, b, 1)) for a, b in steps)
        self.up = nn.ModuleList(up(b, a) for a, b in steps)
        self.merge = nn.ModuleList(unit(2 * a, a, 3, 1, SLOPE) for a, _ in steps)
        self.classify = nn.Conv3d(first, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y: Tensor = levels.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            y = merge(torch.cat((up(y), levels.pop()), 1))
        classes: Tensor = self.classify(y)
        return classes


@dataclass(frozen=True)
class Network:
    """A network for each kind of norm, the shape of its input, and its loss."""

    build: Callable[[str], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[Tensor], Tensor]


NETWORKS = {
    "CycleGAN generator, 1x3x256x256": Network(
        generator, (1, 3, 256, 256), lambda y: (y - 0.5).abs().mean()
    ),
    "3D U-Net, 1x1x64x64x64": Network(
        UNet, (1, 1, 64, 64, 64), lambda y: F.cross_entropy(y, y.new_zeros(y[:, 0].shape).long())
    ),
}


def rows() -> Iterator[Row]:
    for name, network in NETWORKS.items():
        for layout in ("contiguous", "channels_last"):
            yield from measure(name, network, layout)


def measure(name: str, network: Network, layout: str, budget: float = 1.0) -> list[Row]:
    torch.manual_seed(0)
    x = torch.randn(network.shape)
    memory_format = torch.contiguous_format
    if layout == "channels_last":
        memory_format = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    x = x.contiguous(memory_format=memory_format)
    state = network.build("torch").state_dict()
    networks: dict[str, nn.Module] = {}
    for norm in NORMS:
        networks[norm] = network.build(norm)
        networks[norm].load_state_dict(state, strict=norm != "none")
        networks[norm].to(memory_format=memory_format)  # type: ignore[call-overload]
    _check(networks, x)

    def forward(model: nn.Module) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def call() -> Tensor:
            y: Tensor = model(x)
            return y

        return call

    def training(model: nn.Module) -> Callable[[], None]:
        # So small a rate that the weights stay what they are for all rounds.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

        def call() -> None:
            optimizer.zero_grad()
            network.loss(model(x)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return call

    return [
        Row(
            network=name,
            layout=layout,
            task=task.__name__,
            **interleaved({norm: task(model) for norm, model in networks.items()}, budget),
        )
        for task in (forward, training)
    ]


@torch.inference_mode()
def _check(networks: dict[str, nn.Module], x: Tensor) -> None:
    """Check that the networks that are timed have equal outputs for equal weights."""
    expected = networks["torch"](x)
    tolerance = TOLERANCE * float(expected.abs().max())
    for norm in ("ours", "fused"):
        torch.testing.assert_close(networks[norm](x), expected, rtol=0, atol=tolerance)


def table(rows: list[Row]) -> str:
    lines = [
        "| network | layout | pass | none (ms) | torch (ms) | share | ours (ms) | share | "
        "fused (ms) | share | ours, faster | fused, faster |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        times = (
            f"{getattr(row, field) * 1e3:.0f} | {row.share(field):.0%}"
            for field in ("torch", "ours", "fused")
        )
        lines.append(
            f"| {row.network} | {row.layout} | {row.task} | {row.none * 1e3:.0f} | "
            f"{' | '.join(times)} | {row.torch / row.ours:.2f}x | {row.torch / row.fused:.2f}x |"
        )
    return "\n".join(lines) + "\n"
