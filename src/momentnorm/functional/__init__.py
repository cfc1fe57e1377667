"""Functional: stateless forms with the signatures of ``torch.nn.functional``.

``layer_norm``, ``rms_norm`` and ``local_response_norm`` are torch's own functions, here for
completeness. They are not policies on planes: the first two have a weight for each element, and the
third has a window of neighbouring channels.
"""

from torch.nn.functional import layer_norm, local_response_norm, rms_norm

from .classic import batch_norm, group_norm, instance_norm
from .pooled import plane_affine, plane_moments, pooled_norm

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "plane_affine",
    "plane_moments",
    "pooled_norm",
    "rms_norm",
]
