"""Explore: a page on which a normalization is done step by step, as one file."""

from .document import page
from .server import serve

__all__ = ["page", "serve"]
