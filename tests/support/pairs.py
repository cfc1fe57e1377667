"""One of our layers beside torch's, with the same parameters and buffers."""

from __future__ import annotations

import torch
from torch import nn

import momentnorm

NAMES = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]
LAZY_NAMES = ["Lazy" + name for name in NAMES]
BATCH_NAMES = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
LAZY_BATCH_NAMES = ["Lazy" + name for name in BATCH_NAMES]
SHAPES = {"1d": (3, 4, 9), "2d": (3, 4, 5, 6), "3d": (3, 4, 2, 3, 4)}

#: Arguments that construct each class of torch's that we replace, for 4 channels.
CLASSES = {
    **dict.fromkeys(NAMES + BATCH_NAMES, (4,)),
    **dict.fromkeys(LAZY_NAMES + LAZY_BATCH_NAMES, ()),
    "GroupNorm": (2, 4),
}


def pair(name="InstanceNorm2d", *args, **kwargs):
    """One of our layers and torch's, with equal weights."""
    ours = getattr(momentnorm, name)(*args, **kwargs)
    theirs = getattr(nn, name)(*args, **kwargs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def norm_pair(training=True, **arguments):
    """InstanceNorm2d and torch's, in float64, with equal weights and running statistics."""
    ours, theirs = pair(**{"num_features": 3, "affine": True, "dtype": torch.float64, **arguments})
    with torch.no_grad():
        for buffer in theirs.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return ours.train(training), theirs.train(training)


def feature_map(*shape):
    """Noise in float64, for :func:`norm_pair`."""
    return torch.randn(shape or (2, 3, 4, 5), dtype=torch.float64)
