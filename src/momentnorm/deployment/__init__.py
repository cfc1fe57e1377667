"""``momentnorm.export_check``: what an export changed in the normalization layers of a model."""

from importlib.util import find_spec

if not find_spec("onnx"):
    raise ImportError(
        "momentnorm.export_check reads ONNX files: pip install 'momentnorm[export]'", name="onnx"
    )

from .check import export_check
from .report import KINDS, ExportReport, Finding, Row

__all__ = ["KINDS", "ExportReport", "Finding", "Row", "export_check"]
