"""Figure: drawings of which elements of a feature map share their statistics."""

from .figure import KINDS, USUAL, draw, policy, shares

__all__ = ["KINDS", "USUAL", "draw", "policy", "shares"]
