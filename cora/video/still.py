"""Pictures and GIFs as Pillow sees them: whether they are whole, and which way up they are shown.

FFmpeg hands out the upper part of a picture that was cut off, and PyAV cannot hand out EXIF.
"""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cora.video.promise import VideoError
from cora.video.upright import AS_STORED, ORIENTATIONS, Turn

FORMATS = "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"
"""Pillow would run other programs for some of the rest."""
ORIENTATION = 274
"""EXIF's tag."""


def turn_of_still(path: Path) -> Turn:
    """Returns how the picture is to be turned; what Pillow does not know stays as it is stored.

    Raises VideoError where it is cut off or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            for number in range(getattr(picture, "n_frames", 1)):
                picture.seek(number)
                picture.load()
            told = picture.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        return AS_STORED
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"is truncated or damaged: {error}"[:110]) from error
    return ORIENTATIONS[told - 1] if told in range(1, 9) else AS_STORED
