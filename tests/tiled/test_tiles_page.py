"""Page on tiles: its figures are measured, and a run needs no more memory than its plan."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "tiles.md").read_text()


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    assert "schedule " in capsys.readouterr().out


def test_the_figures_are_the_measured_ones():
    with open(DOCS / "tiles.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        size = f"{row['size']} MP" if row["network"] == "style" else f"{row['size']}^3"
        names = ("schedule", "threads", "seconds", "memory", "plan", "disk")
        cells = [row["network"], size, *(row[name] for name in names)]
        assert f"| {' | '.join(cells)} |" in PAGE
    with open(DOCS / "tiles-seams.csv") as file:
        for row in csv.DictReader(file):
            assert f"| {row['statistics']} | {row['psnr']} |" in PAGE


def test_memory_by_the_system_is_bounded_by_the_plan():
    """Linux's account: the untiled model would need 10 times as much."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux has this account")
    program = """
        import numpy as np, torch
        from torch import nn
        from momentnorm.tiles import tiled

        def status(name):
            lines = open("/proc/self/status").read().splitlines()
            return int(next(l for l in lines if l.startswith(name)).split()[1]) * 1024

        class Zeros:
            dtype = np.float32
            shape = (1, 2048, 2048)
            def __getitem__(self, key):
                return np.zeros([part.stop - part.start if part.stop else 1 for part in key],
                                np.float32)
            def __setitem__(self, key, value):
                pass

        torch.set_num_threads(1)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, 4, 1), nn.InstanceNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, 4),
        ).eval()
        run = tiled(model, tile=512, store=True)
        run(torch.zeros(1, 512, 512))  # what is loaded when it is first needed
        plan = run.plan(Zeros.shape, estimate=False)
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")
        run(Zeros(), Zeros())
        print(plan.memory, plan.untiled_memory, status("VmHWM") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plan, untiled, peak = map(int, done.stdout.split())
    # Python and the C library take memory besides the maps of a tile.
    assert peak < 2 * plan + 10_000_000
    assert untiled > 10 * plan
