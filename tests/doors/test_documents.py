"""The code of the pages about NumPy, Keras and deployment runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")

#: Packages that the code of a page needs.
PAGES = {"numpy": ["numpy"], "keras": ["keras"], "export": ["onnx", "onnxruntime"]}

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.filterwarnings("ignore")  # of Keras, and of torch's exporter
@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch):
    for needed in PAGES[page]:
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert blocks
    names = {"__name__": page}
    for block in blocks:
        exec(block, names)
