"""Fast stylization: a photograph in the manner of a picture, in one pass of a small network.

Needs the extra ``pip install 'momentnorm[stylize]'``; nothing else in momentnorm imports it.

>>> from momentnorm.stylize import load_style, read_photo, stylize  # doctest: +SKIP
>>> picture = stylize(read_photo("cat.jpg").rgb, load_style("mosaic"))  # doctest: +SKIP
"""

from .apply import stylize
from .artworks import draw
from .errors import StylizeError
from .images import Photo, read_photo, write_photo
from .network import Architecture, Network
from .styles import Style, bundled_styles, load_style, save_style
from .trainer import Settings, train

__all__ = [
    "Architecture",
    "Network",
    "Photo",
    "Settings",
    "Style",
    "StylizeError",
    "bundled_styles",
    "draw",
    "load_style",
    "read_photo",
    "save_style",
    "stylize",
    "train",
    "write_photo",
]
