"""Cases with masks and lengths."""

from __future__ import annotations

import torch

from support.layouts import LAYOUTS


def mask_of(lengths, spatial):
    """Mask (N, 1, *S) from lengths (N, number of spatial dimensions), written out."""
    mask = torch.zeros(len(lengths), 1, *spatial, dtype=torch.bool)
    for sample, extent in enumerate(lengths.tolist()):
        mask[(sample, 0, *(slice(size) for size in extent))] = True
    return mask


#: rank: shape of x, and lengths of its samples. No sample has a single valid element, since its
#: gradient would be the difference of two terms of size 1 / sqrt(eps).
SHAPES = {
    "1d": ((5, 3, 9), [[9], [4], [3], [0], [2]]),
    "2d": ((4, 3, 5, 6), [[5, 6], [3, 2], [1, 2], [0, 4]]),
    "3d": ((3, 2, 3, 4, 5), [[3, 4, 5], [2, 1, 3], [1, 2, 0]]),
}


def make_operands(rank, dtype, layout="contiguous"):
    shape, lengths = SHAPES[rank]
    x = LAYOUTS[layout]((3 * torch.randn(shape, dtype=torch.float64) + 2).to(dtype))
    weight = (torch.rand(shape[1], dtype=torch.float64) + 0.5).to(dtype)
    bias = torch.randn(shape[1], dtype=torch.float64).to(dtype)
    residual = torch.randn(shape, dtype=torch.float64).to(dtype)
    gradient = torch.randn(shape, dtype=torch.float64).to(dtype)
    ours = [t.requires_grad_() for t in (x, weight, bias, residual)]
    twins = [t.detach().double().contiguous().requires_grad_() for t in ours]
    return ours, gradient, twins, torch.tensor(lengths)
