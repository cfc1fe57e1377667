"""Backends: the arithmetic of the engine, for each kind of machine."""

from .backend import Backend

__all__ = ["Backend"]
