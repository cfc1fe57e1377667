"""``momentnorm.explain``: what a layer computes, step by step.

The package is the function: ``momentnorm.explain(layer, x)`` returns a :class:`Trace`.
``momentnorm explain`` on the command line prints one.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .call import explain
from .explanation import Explanation
from .family import explains
from .names import names
from .planes import Planes
from .running import Update
from .statistics import Given, MeanSquare, Pooled, Statistics
from .trace import Check, ExplainError, Step, Steps, Trace, TraceMismatchError, Worked

__all__ = [
    "Check",
    "ExplainError",
    "Explanation",
    "Given",
    "MeanSquare",
    "Planes",
    "Pooled",
    "Statistics",
    "Step",
    "Steps",
    "Trace",
    "TraceMismatchError",
    "Update",
    "Worked",
    "explain",
    "explains",
    "names",
]


class _Callable(ModuleType):
    """This module, which may be called: importing anything from it must not hide the function."""

    def __call__(self, *arguments: Any, **options: Any) -> Trace:
        return explain(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
