"""``momentnorm.check``: what goes wrong with the normalization layers of a model, and the fix.

(Which backend takes a call is another question, and ``momentnorm doctor`` answers it.)
"""

from .report import KINDS, Finding, Report
from .run import check

__all__ = ["KINDS", "Finding", "Report", "check"]
