"""Explainer: what a layer computes, step by step.

:func:`momentnorm.explain` is the function of this package. It returns a :class:`Trace`.
"""

from .call import explain
from .errors import ExplainError, TraceMismatchError
from .explanation import Explanation
from .formats import save
from .names import names
from .planes import Planes
from .registry import explains, explanation_of
from .running import Update
from .statistics import Given, MeanSquare, Pooled, Statistics
from .steps import Check, Step, Steps, Worked
from .trace import Trace

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
    "explanation_of",
    "names",
    "save",
]
