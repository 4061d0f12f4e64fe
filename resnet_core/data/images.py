"""Image files: which formats are read, and how safely."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps


class ImageError(ValueError):
    """A file that is not a whole image; the message names it."""


def read_image(path: str | Path) -> Image.Image:
    """The decoded image, turned upright as its EXIF data say, 16-bit grey as 8 bits. Raises ImageError otherwise.

    Only FORMATS are tried, whatever the file's ending: Pillow hands some other formats to external programs.
    """
    if not Path(path).exists():
        raise ImageError(f"{path} does not exist; check the name")
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise errors of any type at what anyone wrote
        raise ImageError(
            f"{path} is not a whole image in one of the formats {', '.join(FORMATS)} ({error}); replace or remove it"
        ) from error
    if max(upright.size) > LARGEST_RATIO * min(upright.size):
        raise ImageError(
            f"{path} has {upright.width} x {upright.height} pixels, too long and thin to be cropped; the longer side "
            f"may be at most {LARGEST_RATIO} times the shorter"
        )
    if upright.mode.startswith("I;16"):
        return upright.point(lambda value: value / 257).convert("L")
    if upright.mode in ("I", "F"):
        raise ImageError(
            f"{path} has 32 bits per channel, and 32-bit images have no standard white level; save it with 8 or 16 "
            "bits per channel"
        )
    return upright


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_RATIO = 100  # of the longer side to the shorter


def find_images(path: str | Path) -> list[Path]:
    """The file itself, or all files in a folder that have an image's ending, at any depth, sorted.

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
        raise ImageError(f"{path} is a folder without images; known endings are {', '.join(sorted(endings))}")
    return found


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Raises ImageError for a link that leads nowhere: its images would be missed in silence."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ImageError(
                f"{path} is a link to {path.readlink()}, which does not exist; mount that disk, or remove the link"
            )
