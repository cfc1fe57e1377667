"""Trains the bundled styles again: ``python -m momentnorm.stylize.bundle [NAME ...]``."""

from __future__ import annotations

import sys

from .command import main as stylize
from .styles import FOLDER

#: The options of ``momentnorm stylize train`` for each, beside --style and -o.
RECIPES: dict[str, list[str]] = {
    "mosaic": ["--content-weight", "0.7", "--steps", "1200"],
    "swirl": ["--content-weight", "0.6"],
    "woodcut": ["--style-size", "384", "--steps", "1000"],
}


def main(names: list[str]) -> int:
    for name in names or list(RECIPES):
        target = FOLDER / f"{name}.safetensors"
        command = ["train", "--style", name, "-o", str(target), "--device", "cpu", *RECIPES[name]]
        print("momentnorm stylize", *command, flush=True)
        if code := stylize(command):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
