"""What decodes the images to train on: Pillow, or for JPEG files a faster library that decodes no more than is needed.

Evaluation always decodes with Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from PIL import ExifTags, Image
from torch import Tensor

from resnet_core.data.images import refuse_size
from resnet_core.data.loaders import unchanged
from resnet_core.data.splits import ImageFiles, LabelledImages

PILLOW = "pillow"

# 1 / each of these is a size at which libjpeg decodes by shorter transforms. It could also decode at any number of
# eighths, but without vector instructions: that takes longer than the whole image.
REDUCTIONS = (8, 4, 2)

# EXIF's orientations, 1 to 8, by what turns them upright: rows and columns are exchanged, then some are mirrored.
EXCHANGED = {5, 6, 7, 8}
MIRRORED = {1: {3, 4, 7, 8}, 2: {2, 3, 6, 7}}  # by the dimension of [C, H, W]
APP1, START_OF_SCAN, FILLER = 0xE1, 0xDA, 0xFF  # kinds of segments: ITU T.81, table B.1; EXIF and XMP are in APP1
DECODED_COLOURS = ("YCbCr", "Gray", "RGB")


@dataclass(frozen=True)
class JpegImage:
    """A JPEG file in memory, not decoded yet."""

    data: bytes
    stored: tuple[int, int]
    """Height and width in the file."""
    orientation: int
    """By the file's EXIF data, 1 to 8."""
    by_pillow: Callable[[], Tensor]
    """The whole image, upright, as Pillow decodes it: for a file that simplejpeg finds fault with."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        height, width = self.stored
        return (width, height) if self.orientation in EXCHANGED else (height, width)

    def region(self, top: int, left: int, height: int, width: int, size: int) -> Tensor:
        """That part of the upright image, uint8 `[3, H, W]`, reduced as far as each side stays at least `size` pixels.

        Raises ImageError for a damaged file.
        """
        reduction = next((each for each in REDUCTIONS if min(height, width) >= each * size), 1)
        try:
            pixels = self._decoded(reduction)
        except ValueError:
            pixels, reduction = self.by_pillow(), 1
        # Where the edges lie in the reduced image, to the nearest pixel.
        top, bottom, left, right = (
            (edge + reduction // 2) // reduction for edge in (top, top + height, left, left + width)
        )
        return pixels[:, top:bottom, left:right]

    def _decoded(self, reduction: int) -> Tensor:
        """The whole upright image at 1 / `reduction` of its size. Raises ValueError for any fault in the file."""
        import simplejpeg

        least = [-(-side // reduction) for side in self.stored]
        array = simplejpeg.decode_jpeg(self.data, min_height=least[0], min_width=least[1])
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        pixels = pixels.transpose(1, 2) if self.orientation in EXCHANGED else pixels
        mirrored = [dimension for dimension, those in MIRRORED.items() if self.orientation in those]
        return pixels.flip(mirrored) if mirrored else pixels


class EncodedFiles(ImageFiles):
    """Image files of which `take` leaves the JPEG files encoded; Pillow decodes the others, and all for `[index]`."""

    def take(self, indices: Sequence[int], /) -> list[Tensor | JpegImage]:  # type: ignore[override]
        return [self._encoded(index) or self._by_pillow(index) for index in indices]

    def _encoded(self, index: int) -> JpegImage | None:
        """The file's header with its data; None for all that Pillow decodes."""
        import simplejpeg

        path = self.path(index)
        try:
            data = path.read_bytes()
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            orientation = orientation_of(data)
        except Exception:  # of any type, by what is in the file: Pillow decodes it, or says what is wrong
            return None
        if colours not in DECODED_COLOURS or self.channels != 3 or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        refuse_size(path, (width, height))
        return JpegImage(data, (height, width), orientation, partial(self._by_pillow, index))

    def _by_pillow(self, index: int) -> Tensor:
        return self[index][0]


def orientation_of(data: bytes) -> int:
    """A JPEG file's orientation by its EXIF or XMP data, as Pillow finds it; 1 for none and for an unknown one."""
    if APP1 not in segments_of(data):
        return 1
    with Image.open(io.BytesIO(data)) as image:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(1, 9) else 1


def segments_of(data: bytes) -> set[int]:
    """The kinds of segments before a JPEG file's pixels. Raises IndexError where the file ends in them."""
    kinds, position = set(), 2
    while (kind := data[position + 1]) != START_OF_SCAN:
        if kind == FILLER:
            position += 1
            continue
        kinds.add(kind)
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return kinds


def with_simplejpeg(split: LabelledImages) -> EncodedFiles:
    """The same images, of which simplejpeg decodes the JPEG files. Raises ValueError where they do not lie in files."""
    if find_spec("simplejpeg") is None:
        raise ValueError(
            "data.decoder simplejpeg needs that library: pip install 'resnet-core[fast]', or set data.decoder pillow"
        )
    if not isinstance(split, ImageFiles):
        raise ValueError("data.decoder simplejpeg is for image files, and this dataset has none; leave it out")
    return EncodedFiles(**vars(split))


# What `--data.decoder` may be -> the images to train on, decoded by that library.
DECODERS: dict[str, Callable[[LabelledImages], LabelledImages]] = {PILLOW: unchanged, "simplejpeg": with_simplejpeg}
