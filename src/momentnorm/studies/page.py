"""Page: the Markdown of a folder of results. All verdicts and figures come from the CSVs."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from ..support.files import write_file
from .catalogue import STUDIES
from .errors import StudyError
from .layers import LABELS
from .record import read_results
from .results import MissingError, Results, Sample, agree
from .runner import BOTH, SEEDS
from .study import VERDICTS, AnyStudy
from .tables import Table

#: Folder of the results, in the folder that the user names.
FOLDER = "studies"

#: Name of the page, in the folder that the user names.
PAGE = "studies.md"

_INTRODUCTION = """\
# Studies

Common claims about normalization layers, tested with small networks on images that come inside
Python packages. `momentnorm study` writes this page from the CSV files in the folder `studies`.

- BN is Batch Normalization, LN Layer Normalization over (C, H, W), IN Instance Normalization, GN
  Group Normalization with groups of 8 channels, SN Switchable Normalization.
- A figure is a mean over the seeds ± the spread. The spread is the standard deviation over n seeds,
  divided by n - 1.
- A verdict is computed: each claim has a criterion, and the figures decide.
- "Not reproduced at this scale" is about these small networks. The claim may hold for larger ones.
"""


def write_page(out: Path) -> Path:
    """Draw the plots of all studies in a folder, and write their page. Its path is returned.

    Raises:
        StudyError: the folder has no results, or a file cannot be read.
        UserError: a file cannot be written.
    """
    text = page(out)
    for study in found_in(out):
        _, results = read_results(out / FOLDER, study)
        study.draw(_judged(results), out / FOLDER)
    write_file(out / PAGE, text)
    return out / PAGE


def found_in(out: Path) -> list[AnyStudy]:
    """Studies with results in a folder."""
    return [s for s in STUDIES.values() if (out / FOLDER / f"{s.name}.csv").exists()]


def page(out: Path) -> str:
    """Markdown of the page, from the files in the folder."""
    studies = found_in(out)
    if not studies:
        raise StudyError(f"{out / FOLDER}: no results of a study are there; run a study first")
    folder = out / FOLDER
    sections = [section(study, folder) for study in studies]
    return "\n".join([_INTRODUCTION, _summary(studies, folder), *sections])


def _summary(studies: list[AnyStudy], folder: Path) -> str:
    """Table of the studies with their numbers of verdicts."""
    rows = []
    for study in studies:
        known, results = read_results(folder, study)
        judged = _judged(results)
        words = collections.Counter(c.verdict(judged)[0] for c in study.claims(judged))
        counts = [str(words[verdict]) for verdict in VERDICTS]
        rows.append([f"[{study.title}](#{_anchor(study.title)})", known["setting"], *counts])
    return Table("", ["study", "setting", *VERDICTS], rows).markdown()


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def section(study: AnyStudy, folder: Path) -> str:
    """Section of one study."""
    known, results = read_results(folder, study)
    judged = _judged(results)
    parts = [f"## {study.title}\n", study.text + "\n", _conditions(study, known, results)]
    claims = [[c.text, *c.verdict(judged), c.criterion] for c in study.claims(judged)]
    verdicts = [[text, f"**{word}**", figures, when] for text, word, figures, when in claims]
    heading = ["claim", "verdict", "figures", "counts as reproduced if"]
    parts.append(Table("", heading, verdicts).markdown())
    parts.append(f"![{study.title}]({FOLDER}/{study.name}.svg)\n")
    for norm, label in LABELS.items():
        picture = f"{study.name}-{norm}.jpg"
        if (folder / picture).exists():
            parts.append(f"![{study.title}, {label}]({FOLDER}/{picture})\n")
    parts += [table.markdown() for table in study.tables(judged)]
    if len(results.distinct("layers")) > 1:
        parts.append(_comparison(study, results))
    return "\n".join(parts)


def _judged(results: Results) -> Results:
    """Results that are judged: finished seeds of momentnorm's layers, or else of torch's."""
    kinds = results.distinct("layers")
    return results.where(layers="momentnorm" if "momentnorm" in kinds else kinds[0]).whole()


def _conditions(study: AnyStudy, known: dict[str, Any], results: Results) -> str:
    """Command, setting, versions, machine and times."""
    settings, versions = known["settings"], known["versions"]
    seeds = sorted(_judged(results).distinct("seed"), key=float)
    option = " --quick" if known["setting"] == "quick" else ""
    kinds = results.distinct("layers")
    layers = kinds[0] if len(kinds) == 1 else BOTH
    option += f" --layers {layers}" if layers != "momentnorm" else ""
    option += f" --seeds {len(seeds)}" if len(seeds) != SEEDS else ""
    lines = [
        f"    momentnorm study {study.name}{option} -o OUT\n",
        f"The **{known['setting']}** setting, with seeds {', '.join(map(str, seeds))}. "
        f"Settings: {_settings_text(settings)}. "
        f"{known['machine']}, threads: {known['threads']}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
    for kind in kinds:
        rows = results.where(layers=kind).whole().rows
        seconds = sum(float(row["seconds"]) for row in rows)
        lines.append(
            f"With {kind}'s layers {len(rows)} trainings took {seconds:.0f} s of one core."
        )
    return "\n".join(lines) + "\n"


def _settings_text(settings: dict[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        if isinstance(value, dict):
            shown = f"({_settings_text(value)})"
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _comparison(study: AnyStudy, results: Results) -> str:
    """Comparison of the figures and times of momentnorm's layers with torch's."""
    names = list(results.rows[0])
    names = names[1 : names.index("seed")]  # the cell's keys are between the layers and the seed
    both: list[tuple[Sample, Sample]] = []
    seconds = dict.fromkeys(("momentnorm", "torch"), 0.0)
    finished = [set(results.where(layers=kind).whole().distinct("seed")) for kind in seconds]
    shared = Results([row for row in results.rows if row["seed"] in set.intersection(*finished)])
    for cell in dict.fromkeys(tuple(row[name] for name in names) for row in shared.rows):
        here = shared.where(**dict(zip(names, cell, strict=True)))
        try:
            pair = [here.sample(study.metric, layers=kind) for kind in seconds]
        except MissingError:  # torch has no such layer, or one of the two was not computed
            continue
        both.append((pair[0], pair[1]))
        for kind in seconds:
            seconds[kind] += sum(float(row["seconds"]) for row in here.where(layers=kind).rows)
    same = sum(agree(ours, theirs) for ours, theirs in both)
    return (
        f"{len(both)} cells were computed with torch's layers too. In {same} of them the two means "
        f"(of `{study.metric}` in the CSV) differ by at most the sum of the two spreads. All "
        f"{len(both)} took {seconds['torch']:.0f} s with torch's layers and "
        f"{seconds['momentnorm']:.0f} s with momentnorm's.\n"
    )
