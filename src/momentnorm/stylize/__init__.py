"""Stylization: photographs in the style of a picture, in one pass of a small network.

Needs the extra ``pip install 'momentnorm[stylize]'``; no other package of momentnorm imports this.

>>> from momentnorm.stylize import load_style, read_photo, stylize  # doctest: +SKIP
>>> picture = stylize(read_photo("cat.jpg").rgb, load_style("mosaic"))  # doctest: +SKIP
"""

from .apply import stylize
from .artworks import draw
from .errors import StylizeError
from .images import Photo, read_photo, write_photo
from .learning import LEARN, learn, train
from .styles import Style, blend, bundled_styles, load_style, save_style
from .trunk import Trunk, TrunkShape
from .trunk_files import load_trunk, save_trunk
from .trunk_training import StylePicture, TrainingSettings

__all__ = [
    "LEARN",
    "Photo",
    "Style",
    "StylePicture",
    "StylizeError",
    "TrainingSettings",
    "Trunk",
    "TrunkShape",
    "blend",
    "bundled_styles",
    "draw",
    "learn",
    "load_style",
    "load_trunk",
    "read_photo",
    "save_style",
    "save_trunk",
    "stylize",
    "train",
    "write_photo",
]
