"""IBN: instance normalization of some channels, batch normalization of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Layer
from .batch_norm import BatchNorm2d
from .instance_norm import InstanceNorm2d


class IBN(Layer):
    """IBN: instance normalization of the first channels, batch normalization of the others.

    The first ``int(C * ratio)`` channels go through an affine InstanceNorm2d, ``IN``. The others go
    through a BatchNorm2d, ``BN`` (Pan, Luo, Shi and Tang, *Two at Once: Enhancing Learning and
    Generalization Capacities via IBN-Net*, arXiv 1807.09441). Both names are those of the authors'
    checkpoints.

    Args:
        num_features: C, the number of channels.
        ratio: share of the channels that get instance normalization.

    Shape:
        (N, C, H, W), and the output alike, in the input's memory layout.

    Raises:
        ValueError: a ``ratio`` that leaves one of the two norms without channels; an input with
            planes of one pixel.
        RuntimeError: another number of channels.

    >>> IBN(4)(torch.randn(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        ratio: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        first = int(num_features * ratio)
        if not 0 < first < num_features:
            raise ValueError(
                f"ratio={ratio} of {num_features} channels is {first}: both norms need a channel; "
                "choose another ratio, or InstanceNorm2d or BatchNorm2d alone"
            )
        self.num_features = num_features
        self.instance_channels = first
        self.IN = InstanceNorm2d(first, affine=True, device=device, dtype=dtype)
        self.BN = BatchNorm2d(num_features - first, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        # Copies, since some channels of a channels_last input do not lie together in memory.
        sizes = [self.instance_channels, self.num_features - self.instance_channels]
        first, rest = (part.clone() for part in torch.split(input, sizes, 1))
        return torch.cat((self.IN(first), self.BN(rest)), 1)
