"""``momentnorm study``: what is often said of these norms, as experiments that anyone can rerun.

Needs the extra ``pip install 'momentnorm[studies]'``; nothing else in momentnorm imports it.
"""

from .catalogue import STUDIES
from .errors import StudyError
from .results import Results
from .runner import run
from .study import Study

__all__ = ["STUDIES", "Results", "Study", "StudyError", "run"]
