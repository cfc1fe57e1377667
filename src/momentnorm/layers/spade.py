"""SPADE: scale and shift of each pixel from a segmentation map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Layer
from .batch_norm import BatchNorm2d
from .instance_norm import InstanceNorm2d


class SPADE(Layer):
    r"""SPADE, spatially-adaptive normalization: scale and shift of each pixel from a map.

    .. math:: y = \mathrm{norm}(x) \cdot (1 + \gamma(m)) + \beta(m)

    The norm has no parameters. The segmentation map m is resized to the size of x by nearest
    neighbours, and goes through a hidden layer ``relu(conv(m))``. Gamma and beta are convolutions
    of that layer (Park, Liu, Wang and Zhu, *Semantic Image Synthesis with Spatially-Adaptive
    Normalization*, arXiv 1903.07291).

    Args:
        num_features: C, the number of channels of x.
        label_channels: number of channels of the map, such as one for each class.
        norm: "instance" or "batch". For synchronized statistics take "batch" and convert the
            model by :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm`.
        hidden_channels: number of channels of the hidden layer.
        kernel_size: size of the kernels of all three convolutions, odd.

    The names ``param_free_norm``, ``mlp_shared``, ``mlp_gamma`` and ``mlp_beta`` are those of the
    authors' checkpoints.

    Shape:
        input (N, C, H, W) and map (N, label_channels, any height, any width), in floating point.
        The output has the shape of the input.

    Raises:
        ValueError: an unknown norm; an even kernel size; an input or a map with another number of
            dimensions; a map of integers.

    >>> SPADE(4, label_channels=3)(torch.randn(2, 4, 8, 8), torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        label_channels: int,
        norm: str = "instance",
        hidden_channels: int = 128,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size={kernel_size} is even: pass an odd one, which keeps height and width"
            )
        norms = {"instance": InstanceNorm2d, "batch": BatchNorm2d}
        if norm not in norms:
            raise ValueError(f"norm must be 'instance' or 'batch', not {norm!r}")
        self.param_free_norm = norms[norm](num_features, affine=False, device=device, dtype=dtype)

        def convolution(inputs: int, outputs: int) -> nn.Conv2d:
            padding = kernel_size // 2
            return nn.Conv2d(
                inputs, outputs, kernel_size, padding=padding, device=device, dtype=dtype
            )

        self.mlp_shared = nn.Sequential(convolution(label_channels, hidden_channels), nn.ReLU())
        self.mlp_gamma = convolution(hidden_channels, num_features)
        self.mlp_beta = convolution(hidden_channels, num_features)

    def forward(self, input: Tensor, map: Tensor) -> Tensor:
        if input.dim() != 4 or map.dim() != 4:
            raise ValueError(
                "SPADE takes an input (N, C, H, W) and a map (N, label_channels, H, W), got shapes "
                f"{tuple(input.shape)} and {tuple(map.shape)}"
            )
        if not map.is_floating_point():
            raise ValueError(
                f"the map is {map.dtype}: pass one channel for each class, in floating point, "
                "as torch.nn.functional.one_hot(labels).movedim(-1, 1).float()"
            )
        hidden = self.mlp_shared(F.interpolate(map, size=input.shape[2:], mode="nearest"))
        gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        y: Tensor = torch.addcmul(beta, self.param_free_norm(input), 1 + gamma)
        return y
