"""Studies: experiments behind common claims about these norms.

They need ``pip install 'momentnorm[studies]'``. No other part of momentnorm imports them.
"""

from .catalogue import STUDIES
from .errors import StudyError
from .results import Results
from .runner import run
from .study import Study

__all__ = ["STUDIES", "Results", "Study", "StudyError", "run"]
