"""``momentnorm.export_check``: what an export changed in the normalization layers of a model."""

from .check import export_check
from .report import KINDS, ExportReport, Finding, Row

__all__ = ["KINDS", "ExportReport", "Finding", "Row", "export_check"]
