"""Image files: which formats are read, and how safely."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps


class ImageError(ValueError):
    """A file that is not a whole image; the message names it."""


def read_image(path: str | Path) -> Image.Image:
    """The decoded image, upright as its camera says, 16-bit grey as 8 bits. Raises ImageError for anything else.

    FORMATS alone are tried, whatever the file's ending: Pillow hands others to programs outside.
    """
    if not Path(path).exists():
        raise ImageError(f"{path}: no such file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # of any type: decoders meet what anyone wrote
        raise ImageError(f"{path}: not a whole image of {', '.join(FORMATS)} ({error})") from error
    if max(upright.size) > LARGEST_RATIO * min(upright.size):
        raise ImageError(f"{path}: {upright.width} x {upright.height} pixels are too long and thin to be cropped")
    if upright.mode.startswith("I;16"):
        return upright.point(lambda value: value / 257).convert("L")
    if upright.mode in ("I", "F"):
        raise ImageError(f"{path}: values of 32 bits have no agreed white; save it with 8 or 16 bits")
    return upright


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_RATIO = 100  # of the longer side to the shorter


def find_images(path: str | Path) -> list[Path]:
    """The file itself, or those with an image's ending in a folder, at any depth, sorted.

    Raises ImageError for a folder without any, and for a link that leads nowhere.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    inside = sorted(path.rglob("*"))
    refuse_dangling(inside)
    found = [file for file in inside if file.suffix.lower() in endings and file.is_file()]
    if not found:
        raise ImageError(f"{path}: no image in this folder; known endings are {', '.join(sorted(endings))}")
    return found


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Raises ImageError for a link that leads nowhere: images would be missed in silence."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ImageError(f"{path}: a link to {path.readlink()}, which is not there; mount it, or remove the link")
