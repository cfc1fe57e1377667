"""Checkup: find faults in the normalization layers of a model, each with a fix.

``momentnorm doctor`` answers another question: which backend takes a call.
"""

from .report import KINDS, Finding, Report
from .run import check

__all__ = ["KINDS", "Finding", "Report", "check"]
