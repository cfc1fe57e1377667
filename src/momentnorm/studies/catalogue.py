"""Catalogue: the studies by name."""

from __future__ import annotations

from . import batch_size, depth, stylization, switchable
from .study import AnyStudy

STUDIES: dict[str, AnyStudy] = {
    study.name: study
    for study in (stylization.STUDY, batch_size.STUDY, depth.STUDY, switchable.STUDY)
}
