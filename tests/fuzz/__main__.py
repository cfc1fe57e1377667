"""Command ``python -m tests.fuzz``: try damaged files, and keep those that break a reader."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import traceback
from pathlib import Path

from .targets import CORPUS, TARGETS

#: Folder of the file under test, which stays there if it crashes this process.
FOLDER = Path("build/fuzz")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="N", help="total time; default 60"
    )
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 2**32, metavar="N", help="default: the time"
    )
    given = parser.parse_args(argv)
    names = given.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target is named {', '.join(unknown)}; known are {', '.join(TARGETS)}")
    print(f"seed {given.seed}; the file under test is in {FOLDER}/TARGET", flush=True)
    found = 0
    for name in names:
        found += fuzz(name, given.seed, given.seconds / len(names))
    return 1 if found else 0


def fuzz(name, seed, seconds):
    """Try one target for some seconds, and return the number of findings."""
    target, folder = TARGETS[name], FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    cases, found = 0, set()
    end = time.monotonic() + seconds
    for content in target.cases(seed, folder):
        if time.monotonic() > end:
            break
        cases += 1
        start = time.monotonic()
        try:
            target.run(content, folder)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, place.filename, place.lineno)
            if kind not in found:  # one file for each kind of error is kept
                found.add(kind)
                kept = _keep(name, content, target.suffix)
                traceback.print_exc()
                print(f"{name}: kept in {kept}", flush=True)
        if time.monotonic() - start > 10:
            found.add(("slow", cases))
            kept = _keep(name, content, target.suffix)
            print(f"{name}: more than ten seconds; kept in {kept}", flush=True)
    print(f"{name}: {cases} files, {len(found)} findings", flush=True)
    return len(found)


def _keep(name, content, suffix):
    path = CORPUS / name / (hashlib.sha256(content).hexdigest()[:16] + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    sys.exit(main())
