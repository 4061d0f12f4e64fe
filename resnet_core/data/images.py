"""Image files: which formats are read, how safely, and what a folder holds that is not read."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from resnet_core.foundation.errors import first_line, shortened


class ImageError(ValueError):
    """A file that is not a whole image; the message names it."""


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_RATIO = 100  # of the longer side to the shorter
HEIC = (".heic", ".heics", ".heif", ".heifs", ".hif")
HEIC_REMEDY = "pip install 'resnet-core[heic]' reads them"

# Endings of photographs, scans and drawings that are not read, or only with a library.
PHOTOGRAPHS = frozenset(
    (
        *HEIC,
        *(".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".jxl", ".jxr", ".wdp"),
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
        *(".psd", ".xcf", ".svg", ".eps", ".ai", ".ico", ".icns", ".tga", ".pcx", ".dds", ".qoi", ".sgi"),
        *(".dcm", ".exr", ".hdr", ".fits", ".fit"),
    )
)

# How a file begins -> what it is.
BEGINNINGS = {
    rb"\s*<(!DOCTYPE|html|HTML)": "a web page",
    rb"\s*<(\?xml|svg)": "XML or SVG",
    rb"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
    rb"\x00\x05\x16\x07": "macOS's note about another file",
    rb"%PDF": "a PDF",
    rb"%!PS": "PostScript",
    rb"PK\x03\x04": "a zip archive",
    rb"\x1f\x8b": "gzip",
    rb"8BPS": "a Photoshop file",
    rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\xff\x0a|\x00\x00\x00\x0cJXL ": "JPEG XL",
    rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)": "HEIC",
    rb"....ftyp(avif|avis)": "AVIF",
    rb"....ftyp": "a video",
    rb"\x00+\Z": "nothing but zeros",
}
# Kind -> Pillow's name of it, and what reading it needs.
NEEDED = {"HEIC": ("HEIF", HEIC_REMEDY), "AVIF": ("AVIF", "pip install 'pillow>=11.3' reads it")}
# Pillow's modes that convert to grey and to RGB.
COLOURS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}

HASHES = ".resnet-core-hashes.csv"  # written by `data check` into the folder of the data
SETTINGS_OF_COPY = ".resnet-core-resize.json"  # by `data resize` into the copy
OWN_FILES = (HASHES, SETTINGS_OF_COPY)

MOST_BITS = 16  # of a channel
WHITE_OF_16_BITS = 65535
DARKEST_WHITE = 2**14  # 16-bit values that stay below are nearly black: they probably fill fewer bits
TIFF_BITS, TIFF_WHITES = 258, (341, 281)  # tags: BitsPerSample; SMaxSampleValue and MaxSampleValue


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read: FORMATS, AVIF where Pillow has it, HEIC with pillow-heif."""
    found = [*FORMATS]
    if "avif" in features.modules and features.check("avif"):
        found.append("AVIF")
    if find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        found.append("HEIF")
    return tuple(sorted(found))


@cache
def endings() -> frozenset[str]:
    """The endings of the files that are read."""
    known_formats = formats()  # first: it registers some
    known = {ending for ending, name in Image.registered_extensions().items() if name in known_formats}
    return frozenset(known | {".mpo"})  # a JPEG with another one behind it


def read_image(path: str | Path, bits: int = 0) -> Image.Image:
    """The decoded image, turned upright as its EXIF data say, 16-bit grey as 8 bits.

    Raises ImageError for a file that is not a whole image.
    Only `formats()` are tried, whatever the file's ending: Pillow hands some others to external programs. The values of
    a 16-bit file fill `bits` bits or, for 0, as many as the file states; one that states nothing and would be nearly
    black is refused.
    """
    with opened(path) as image:
        white, is_pgm = white_of_file(image, path), image.format == "PPM"
        if bits and not (is_pgm and white):
            white = 2**bits - 1
        tile = image.tile
        image.load()
        upright = ImageOps.exif_transpose(image)

    # 16 bits per channel. Of colours Pillow keeps the upper 8.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and is_pgm):
        return as_8_bits(upright, path, white)
    if any(";16" in str(each.args) or each.args == ("RGB", WHITE_OF_16_BITS) for each in tile):
        highest = int(np.asarray(upright.convert("RGB")).max())
        refuse_black(path, highest << 8, remedy="save it with 8 bits per channel")

    # What cannot become the network's grey or RGB.
    if upright.mode in ("I", "F"):
        raise ImageError(
            f"{path} has 32 bits per channel, and 32-bit images have no standard white level; save it with 8 or 16 "
            "bits per channel"
        )
    if upright.mode in UNMULTIPLIED:
        return upright.convert(UNMULTIPLIED[upright.mode])
    if upright.mode not in COLOURS:
        raise ImageError(f"{path} has the colours {upright.mode}, which do not become RGB; save it as RGB")
    if upright.mode == "P" and "transparency" in upright.info:
        return upright.convert("RGBA")  # the same colours; Pillow warns where such an image becomes RGB
    return upright


@contextmanager
def opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """The image by its header, of a size that can be used. Errors inside this context become ImageError."""
    if not Path(path).exists():
        raise ImageError(f"{path} does not exist; check the name")
    try:
        # Pillow warns of what it can read; the rest raises.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats()) as image:
            refuse_size(path, image.size)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{path} has more than the {limit:,.0f} million pixels that are read; save it smaller, or leave it out"
        ) from error
    except Exception as error:  # decoders raise errors of any type at what anyone wrote
        raise ImageError(f"{path} is not a whole image ({reason_of(path, error)}); replace or remove it") from error


def refuse_size(path: str | Path, size: tuple[int, int]) -> None:
    """Raises ImageError for an image without pixels and for one that is too long and thin."""
    width, height = size
    if not width or not height:
        raise ImageError(f"{path} has {width} x {height} pixels; replace or remove it")
    if max(size) > LARGEST_RATIO * min(size):
        raise ImageError(
            f"{path} has {width} x {height} pixels, too long and thin to be cropped; the longer side "
            f"may be at most {LARGEST_RATIO} times the shorter"
        )


def reason_of(path: str | Path, error: Exception) -> str:
    """What the file is, if it begins like something known, or else what the decoder said of it."""
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(64)
    except OSError as unreadable:
        return unreadable.strerror or str(unreadable)
    if not start:
        return "it is empty"
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error).partition(" (")[0]  # Pillow adds a wrong number of bytes
    kinds = (name for pattern, name in BEGINNINGS.items() if re.match(pattern, start, re.DOTALL))
    kind = next(kinds, "of no known kind")
    if kind not in NEEDED:
        return f"it is {kind}"
    name, needed = NEEDED[kind]
    return f"it is a damaged {kind}" if name in formats() else f"it is {kind}, and {needed}"


def white_of_file(image: ImageFile.ImageFile, path: str | Path) -> int:
    """The white level that a file of up to 16 bits states; 0 where it states none."""
    if image.format == "PPM":
        stated = image.tile[0].args[-1] if isinstance(image.tile[0].args, tuple) else WHITE_OF_16_BITS
        return 0 if stated == WHITE_OF_16_BITS else WHITE_OF_16_BITS  # Pillow has scaled the values to 16 bits
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        stated = [tags[tag] for tag in TIFF_WHITES if tag in tags]
        white = int(np.max(stated[0])) if stated else 2 ** int(np.max(tags.get(TIFF_BITS, 16))) - 1
        return white if white < WHITE_OF_16_BITS else 0
    if image.format == "PNG" and image.mode.startswith("I;16"):
        return 2 ** significant_bits(path) - 1
    return 0


def significant_bits(path: str | Path) -> int:
    """What a PNG's chunk sBIT says of its first channel; 0 where there is none (PNG specification, 11.3.2.7)."""
    with Path(path).open("rb") as stream:
        stream.seek(len(b"\x89PNG\r\n\x1a\n"))
        while len(head := stream.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"sBIT":
                return min(stream.read(1)[0], 16)
            if name == b"IDAT":
                break
            stream.seek(length + 4, os.SEEK_CUR)
    return 0


def as_8_bits(image: Image.Image, path: str | Path, white: int) -> Image.Image:
    """Grey of 16 bits as grey of 8, with `white` as 255; for 0, 65535. Raises ImageError where that looks wrong."""
    values = np.asarray(image).astype(np.int64)
    highest = int(values.max())
    if white and highest > white:
        raise ImageError(
            f"{path} has the value {highest}, and white is {white} by the file or --data.bits; set --data.bits to "
            f"{highest.bit_length()}, or replace the file"
        )
    if not white:
        likely = next(bits for bits in (10, 12, 14, 16) if highest < 2**bits)
        refuse_black(path, highest, remedy=f"set --data.bits {likely} if white is {2**likely - 1}, or 16 if it is dark")
    return Image.fromarray((values * 255 // (white or WHITE_OF_16_BITS)).astype(np.uint8))


def refuse_black(path: str | Path, highest: int, *, remedy: str) -> None:
    """Raises ImageError for 16-bit values that would be nearly black, and are probably of fewer bits."""
    if 0 < highest < DARKEST_WHITE:
        raise ImageError(
            f"{path} has 16 bits per channel and no value above {highest}, and would be nearly black; {remedy}"
        )


@dataclass
class Listing:
    """The files of a folder, by what becomes of them: paths inside the folder."""

    images: list[str] = field(default_factory=list)
    photographs: list[str] = field(default_factory=list)
    """Photographs that are not read, by their ending."""
    outside: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    """Names that begin with a dot, and __MACOSX; of a folder, the folder."""
    empty: list[str] = field(default_factory=list)
    """Class folders that hold no image."""
    other: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)

    def add(self, listing: Listing, inside: str) -> None:
        """Adds the files of a folder that lies `inside` this one."""
        for mine, names in zip(vars(self).values(), vars(listing).values(), strict=True):
            mine += [inside + name for name in names]

    def __str__(self) -> str:
        """What is not read, in one line; empty where everything is."""
        heic = [name for name in self.photographs if ending_of(name) in HEIC]
        reasons = {
            f"HEIC photographs ({HEIC_REMEDY})": heic,
            "photographs that are not read (save them as JPEG or PNG)": sorted(set(self.photographs).difference(heic)),
            "images outside any class folder": self.outside,
            "folders that are not a part of the data": self.folders,
            "hidden names": self.hidden,
            "class folders without an image, which training refuses (remove them)": self.empty,
            "other files": self.other,
            "images on the exclude list": self.excluded,
        }
        return "; ".join(f"{reason}: {len(names):,} ({examples(names)})" for reason, names in reasons.items() if names)


def ending_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def examples(names: Sequence[str]) -> str:
    """One or two names in full; of more, how often each ending comes."""
    if len(names) <= 2:
        return shortened(names)
    counts = Counter(ending_of(name) or "no ending" for name in names)
    return shortened([f"{count} {ending}" for ending, count in counts.most_common()])


def list_folder(folder: str | Path) -> Listing:
    """All files in a folder at any depth, with those behind links, sorted.

    Raises ImageError for a folder that cannot be read, and for a link that leads nowhere or back to a folder above it.
    """
    listing = Listing()
    try:
        fill(listing, str(folder), "", ())
    except OSError as error:
        raise ImageError(
            f"{error.filename or folder} cannot be read ({error.strerror}); allow reading it, or leave it out"
        ) from error
    for names in vars(listing).values():
        names.sort(key=lambda name: name.split("/"))
    return listing


def fill(listing: Listing, root: str, inside: str, above: tuple[tuple[int, int], ...]) -> None:
    """Adds the files of `root/inside`, which lies in the folders `above`, each as its device and number there."""
    here = os.path.join(root, inside)
    status = os.stat(here)
    number = (status.st_dev, status.st_ino)
    if number in above:
        link = next(path for path in (Path(here), *Path(here).parents) if path.is_symlink())
        raise ImageError(f"{link} leads back to a folder above it, so its images would never end; remove that link")

    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name in OWN_FILES:
                continue
            name = os.path.join(inside, entry.name)
            if is_hidden(entry.name):
                listing.hidden.append(name)
            elif entry.is_dir():
                fill(listing, root, name, (*above, number))
            elif not entry.is_file():
                refuse_dangling([Path(here, entry.name)])
                listing.other.append(name)
            elif (ending := ending_of(name)) in endings():
                listing.images.append(name)
            else:
                (listing.photographs if ending in PHOTOGRAPHS else listing.other).append(name)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def find_images(path: str | Path) -> list[Path]:
    """The file itself, or all photographs in a folder at any depth, sorted, also those that are not read.

    Raises ImageError for a folder without any, and for a link that leads nowhere or back.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    listing = list_folder(path)
    found = sorted(path / name for name in (*listing.images, *listing.photographs))
    if not found:
        raise ImageError(f"{path} is a folder without images; known endings are {', '.join(sorted(endings()))}")
    return found


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Raises ImageError for a link that leads nowhere: its images would be missed in silence."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ImageError(
                f"{path} is a link to {path.readlink()}, which does not exist; mount that disk, or remove the link"
            )
