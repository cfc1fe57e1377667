"""``momentnorm.export_check``: find what an ONNX export changed in a model's normalizations."""

from importlib.util import find_spec

if not find_spec("onnx"):
    raise ImportError(
        "momentnorm.export_check reads ONNX files: pip install 'momentnorm[export]'", name="onnx"
    )

from .check import export_check
from .report import KINDS, ExportReport, Finding, Row

__all__ = ["KINDS", "ExportReport", "Finding", "Row", "export_check"]
