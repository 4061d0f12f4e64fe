"""A smaller copy of a folder of images, made once, so that training decodes fewer pixels."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_core.data.images import SETTINGS_OF_COPY, ImageError, list_folder, read_image
from resnet_core.data.loaders import in_groups
from resnet_core.foundation.atomic import replace_file, replacing
from resnet_core.foundation.errors import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_ENDINGS = (".jpg", ".jpeg")
WRITTEN, KEPT = "written", "kept"


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """What became of a folder's images."""

    written: int
    kept: int
    """Copies that were there already."""
    unreadable: tuple[str, ...]
    """A sentence for each file that is not a whole image."""
    notes: tuple[str, ...]
    """What is not read in the source, and what the copy holds that the source does not, in words."""


def resize_images(
    source: str | Path,
    destination: str | Path,
    *,
    shorter_side: int,
    quality: int = 90,
    workers: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ResizeReport:
    """Writes each image of a folder into another one as an upright JPEG file whose shorter side has that many pixels.

    Images are resized as evaluation does it. Smaller ones keep their size, and JPEG files among them are copied. Other
    files' names get the ending .jpg. The same call continues an interrupted copy, and makes those again whose image has
    changed: a copy has its image's time. `advance(done, total)` is called as files are done. Raises ValueError for
    folders that cannot be used.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder; name the folder that holds the images")
    if shorter_side < 1:
        raise ValueError(f"the shorter side must be at least 1 pixel, got {shorter_side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality must be in 1..100, got {quality}")
    listing = list_folder(source)
    if not listing.images:
        raise ValueError(f"{source} holds no images; name the folder that holds the images")
    copies = names_of_copies(listing.images)
    start_copy(destination, source, {"source": str(source.resolve()), "shorter_side": shorter_side, "quality": quality})

    pairs = [(source / name, destination / copy) for name, copy in copies.items()]
    outcomes = list(in_groups(partial(copied, shorter_side, quality), pairs, workers=workers, advance=advance))

    notes = [f"skipped: {listing}"] if str(listing) else []
    if extra := sorted(set(list_folder(destination).images) - set(copies.values())):
        notes.append(f"{destination} holds images that {source} does not; remove them: {shortened(extra)}")
    return ResizeReport(
        written=outcomes.count(WRITTEN),
        kept=outcomes.count(KEPT),
        unreadable=tuple(each for each in outcomes if each not in (WRITTEN, KEPT)),
        notes=tuple(notes),
    )


def names_of_copies(names: Sequence[str]) -> dict[str, str]:
    """Image -> its copy, which is a JPEG file. Raises ValueError for two images with the same copy."""
    copies = {name: name if name.lower().endswith(JPEG_ENDINGS) else f"{name}.jpg" for name in names}
    images = {copy: name for name, copy in copies.items()}
    if both := [name for name, copy in copies.items() if images[copy] != name]:
        raise ValueError(f"{both[0]} and {images[copies[both[0]]]} would have the same copy; rename one of them")
    return copies


def start_copy(destination: Path, source: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or checks that it is the copy with these settings, and removes what is half written in it."""
    ends = (destination.resolve(), source.resolve())
    if ends[0].is_relative_to(ends[1]) or ends[1].is_relative_to(ends[0]):
        raise ValueError(f"{source} and {destination} lie in each other; choose another folder for the copy")

    record = destination / SETTINGS_OF_COPY
    if record.exists():
        before = json.loads(record.read_text())
        changed = [
            f"{key.replace('_', ' ')} {before.get(key)}, not {value}"
            for key, value in settings.items()
            if before.get(key) != value
        ]
        if changed:
            raise ValueError(f"{destination} was made with {' and '.join(changed)}; choose another folder")
    elif destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an earlier copy; choose a new folder")

    destination.mkdir(parents=True, exist_ok=True)
    replace_file(record, json.dumps(settings).encode())
    for half_written in destination.rglob(".*.part"):
        half_written.unlink()


def copied(shorter_side: int, quality: int, pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """Makes the second file of each pair from the first: WRITTEN, KEPT, or why it cannot be."""
    return [make_copy(*pair, shorter_side, quality) for pair in pairs]


def make_copy(source: Path, copy: Path, shorter_side: int, quality: int) -> str:
    """The same for one pair. Raises ImageError where nothing can be written."""
    try:
        times = source.stat()
        if copy.exists() and copy.stat().st_mtime_ns == times.st_mtime_ns:
            return KEPT
        image = read_image(source)

        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as aside:
            if min(image.size) <= shorter_side and copy.name == source.name:
                shutil.copyfile(source, aside)
            else:
                smaller(image.convert("RGB"), shorter_side).save(aside, format="JPEG", quality=quality)
            os.utime(aside, ns=(times.st_atime_ns, times.st_mtime_ns))
    except ImageError as error:
        return str(error)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"{source} has a name that is too long for its copy {copy.name}; rename it"
        raise ImageError(f"{copy} cannot be written ({error.strerror or error}); make room, and go on") from error
    return WRITTEN


def smaller(image: Image, shorter_side: int) -> Image:
    from torchvision.transforms.v2 import functional as V

    return V.resize(image, [shorter_side], antialias=True) if min(image.size) > shorter_side else image
