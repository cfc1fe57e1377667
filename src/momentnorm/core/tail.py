"""Tail: the residual and the activation that follow a normalization in the same pass."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

#: Names of the activations, those of ``torch.nn.functional``. "gelu" is the exact one, by erf.
ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid")

#: A name, a pair of "leaky_relu" and its negative slope, or None.
Activation: TypeAlias = str | tuple[str, float] | None

_DEFAULT_SLOPE = 0.01


class Tail(NamedTuple):
    """The residual and the activation of a call, which follow its affine map.

    .. code-block:: text

        pre_activation = (x - mean) * scale + shift + residual
        y              = activation(pre_activation)
    """

    activation: str = ""  # one of ACTIVATIONS, or "" for the identity
    slope: float = _DEFAULT_SLOPE  # negative slope of leaky_relu
    residual: Tensor | None = None  # (N, C, *S), in the dtype of x

    @property
    def bare(self) -> Tail:
        """This tail without the residual."""
        return self._replace(residual=None) if self.activation else PLAIN


#: The empty tail: no residual, no activation.
PLAIN = Tail()


def parse_activation(activation: Activation) -> tuple[str, float]:
    """Name and negative slope of an activation. None gives ``("", 0.01)``.

    Raises:
        ValueError: an unknown activation, or a slope for one that has none.
        TypeError: neither a name nor a pair of a name and a number.

    >>> parse_activation("relu"), parse_activation(("leaky_relu", 0.2))
    (('relu', 0.01), ('leaky_relu', 0.2))
    """
    if activation is None:
        return "", _DEFAULT_SLOPE
    if isinstance(activation, str):
        name, slope = activation, _DEFAULT_SLOPE
    else:
        name, slope = _pair(activation)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}, or None"
        )
    return name, slope


def _pair(activation: object) -> tuple[str, float]:
    if isinstance(activation, (tuple, list)) and len(activation) == 2:
        name, slope = activation
        if isinstance(name, str) and isinstance(slope, (float, int)):
            if name in ACTIVATIONS and name != "leaky_relu":
                raise ValueError(
                    f"only leaky_relu takes a slope: pass {name!r}, not {activation!r}"
                )
            return name, float(slope)
    raise TypeError(
        f"activation must be a name, such as 'relu', a pair ('leaky_relu', 0.2) or None, not "
        f"{activation!r}"
    )
