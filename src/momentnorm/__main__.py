"""``python -m momentnorm``."""

from .cli import main

raise SystemExit(main())
