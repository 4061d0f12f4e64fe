"""Files as people's folders hold them, odd and damaged: what each of them is promised, and what becomes of it.

`python -m parity.image_files` prints the table of docs/data.md.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from parity.benchmarks.results import markdown_table
from resnet_core.data.check import short_reason
from resnet_core.data.images import ImageError, list_folder, read_image

WIDTH, HEIGHT = 40, 30
Make = Callable[[Path], object]


def picture(mode: str = "RGB") -> Image.Image:
    """A gradient from black to white in each direction."""
    across, down = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)).convert(mode)


def grey(top: int, dtype: str = "<u2") -> Image.Image:
    """A gradient from 0 to `top`, one value a pixel."""
    return Image.fromarray(np.linspace(0, top, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(dtype))


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, *, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG by hand: rows of values, each big-endian, in the specification's colour type."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def deep(top: int, channels: int = 1) -> np.ndarray:
    ramp = np.linspace(0, top, WIDTH * HEIGHT).astype(int).reshape(HEIGHT, WIDTH)
    return ramp if channels == 1 else np.repeat(ramp[..., None], channels, -1).reshape(HEIGHT, -1)


def deep_png(top: int, *, bits: int = 0) -> bytes:
    return png(deep(top), depth=16, colour=0, extra=chunk(b"sBIT", bytes([bits])) if bits else b"")


def deep_colour_png(top: int) -> bytes:
    whole = png(deep(top, 3), depth=16, colour=2)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    return whole[:8] + chunk(b"IHDR", header) + whole[33:]


def tiff(image: Image.Image, tags: dict[int, int] | None = None, **options: object) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory[tag] = value
        directory.tagtype[tag] = 3  # SHORT
    return encoded(image, "TIFF", tiffinfo=directory, **options)


def packed_tiff() -> bytes:
    """12 bits a value, two values in three bytes, by hand."""
    values = deep(4095).reshape(-1, 2)
    data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    entries = {256: WIDTH, 257: HEIGHT, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: HEIGHT, 279: len(data)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + b"\0" * 4


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif)


def moving(name: str) -> bytes:
    return encoded(picture(), name, save_all=True, append_images=[picture().rotate(90)])


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def broken_crc(data: bytes, name: bytes) -> bytes:
    """The checksum of that chunk changed."""
    place = data.index(name) + 4 + int.from_bytes(data[data.index(name) - 4 : data.index(name)], "big")
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def huge() -> bytes:
    """195 million pixels in some thousand bytes."""
    row = zlib.compress(bytes(1))
    header = struct.pack(">IIBBBBB", 15000, 13000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def changed(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def video() -> bytes:
    return b"\0\0\0\x18ftypmp42" + bytes(100)


def as_file(data: Callable[[], bytes] | bytes, name: str = "photo.jpg") -> Make:
    def make(folder: Path) -> None:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data())

    return make


def jpeg() -> bytes:
    return encoded(picture(), "JPEG")


def linked_file(folder: Path) -> None:
    (folder.parent / "archive.jpg").write_bytes(jpeg())
    (folder / "photo.jpg").symlink_to("../archive.jpg")


def linked_folder(folder: Path) -> None:
    (folder.parent / "archive").mkdir()
    (folder.parent / "archive" / "photo.jpg").write_bytes(jpeg())
    (folder / "more").symlink_to("../archive")


READ, REFUSED = f"read, {WIDTH} x {HEIGHT}", "refused: "
PHOTOGRAPH, HIDDEN, OTHER = (
    "skipped as a photograph that is not read",
    "skipped as a hidden name",
    "skipped as another file",
)

# What it is -> what makes it in a class's folder, and what it is promised.
KINDS: dict[str, tuple[Make, str]] = {
    # Whole images.
    "JPEG": (as_file(jpeg), READ),
    "JPEG, progressive": (as_file(lambda: encoded(picture(), "JPEG", progressive=True)), READ),
    "JPEG, grey": (as_file(lambda: encoded(picture("L"), "JPEG")), READ),
    "JPEG in CMYK": (as_file(lambda: encoded(picture("CMYK"), "JPEG")), READ),
    "JPEG, ending `.JPG`": (as_file(jpeg, "photo.JPG"), READ),
    "JPEG, ending `.jfif`": (as_file(jpeg, "photo.jfif"), READ),
    "JPEG called `.png`": (as_file(jpeg, "photo.png"), READ),
    "PNG called `.jpg`": (as_file(lambda: encoded(picture(), "PNG")), READ),
    "JPEG with bytes behind its end": (as_file(lambda: jpeg() + b"trailer" * 99), READ),
    "JPEG with EXIF that is not EXIF": (as_file(lambda: encoded(picture(), "JPEG", exif=b"Exif\0\0rubbish")), READ),
    "JPEG that the camera turned by 180 degrees": (as_file(lambda: turned(3)), READ),
    "JPEG that the camera turned by 90 degrees": (as_file(lambda: turned(6)), f"read, {HEIGHT} x {WIDTH}"),
    "JPEG that the camera mirrored and turned": (as_file(lambda: turned(5)), f"read, {HEIGHT} x {WIDTH}"),
    "JPEG of an orientation that does not exist": (as_file(lambda: turned(9)), READ),
    "MPO: two JPEGs in a file": (as_file(lambda: moving("MPO"), "photo.mpo"), READ),
    "PNG of 1 bit": (as_file(lambda: encoded(picture("1"), "PNG"), "photo.png"), READ),
    "PNG, interlaced": (as_file(lambda: encoded(picture(), "PNG", interlace=1), "photo.png"), READ),
    "PNG with a palette": (as_file(lambda: encoded(picture("P"), "PNG"), "photo.png"), READ),
    "PNG with a palette of which some is transparent": (
        as_file(lambda: encoded(picture("P"), "PNG", transparency=bytes([0, 128, 255])), "photo.png"),
        READ,
    ),
    "PNG with transparency": (as_file(lambda: encoded(picture("RGBA"), "PNG"), "photo.png"), READ),
    "PNG, grey with transparency": (as_file(lambda: encoded(picture("LA"), "PNG"), "photo.png"), READ),
    "PNG, moving: the first picture": (as_file(lambda: moving("PNG"), "photo.png"), READ),
    "PNG with a broken colour profile": (
        as_file(lambda: encoded(picture(), "PNG", icc_profile=b"rubbish"), "photo.png"),
        READ,
    ),
    "GIF": (as_file(lambda: encoded(picture("P"), "GIF"), "photo.gif"), READ),
    "GIF, moving: the first picture": (as_file(lambda: moving("GIF"), "photo.gif"), READ),
    "WebP": (as_file(lambda: encoded(picture(), "WEBP"), "photo.webp"), READ),
    "WebP, moving: the first picture": (as_file(lambda: moving("WEBP"), "photo.webp"), READ),
    "AVIF": (as_file(lambda: encoded(picture(), "AVIF"), "photo.avif"), READ),
    "HEIC, with the extra `heic`": (as_file(lambda: encoded(picture(), "HEIF"), "photo.HEIC"), READ),
    "HEIC called `.jpg`, with the extra `heic`": (as_file(lambda: encoded(picture(), "HEIF")), READ),
    "BMP": (as_file(lambda: encoded(picture(), "BMP"), "photo.bmp"), READ),
    "PPM": (as_file(lambda: encoded(picture(), "PPM"), "photo.ppm"), READ),
    "PPM in text": (as_file(b"P3 1 1 255 9 9 9\n", "photo.ppm"), "read, 1 x 1"),
    "TIFF": (as_file(lambda: tiff(picture()), "photo.tif"), READ),
    "TIFF, compressed": (as_file(lambda: tiff(picture(), compression="tiff_lzw"), "photo.tiff"), READ),
    "TIFF in CMYK": (as_file(lambda: tiff(picture("CMYK")), "photo.tif"), READ),
    "TIFF of several pages: the first": (as_file(lambda: moving("TIFF"), "photo.tif"), READ),
    "1 x 1 pixel": (as_file(lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), "photo.png"), "read, 1 x 1"),
    "100 times as long as wide": (
        as_file(lambda: encoded(Image.new("RGB", (600, 6)), "PNG"), "photo.png"),
        "read, 600 x 6",
    ),
    # Deep values.
    "PNG, grey of 16 bits": (as_file(lambda: deep_png(65535), "photo.png"), f"{READ}, brightest 255"),
    "PNG of 16 bits that states 12": (as_file(lambda: deep_png(4095, bits=12), "photo.png"), f"{READ}, brightest 255"),
    "PNG of 16 bits with values of 12 that states nothing": (
        as_file(lambda: deep_png(4095), "photo.png"),
        f"{REFUSED}has 16 bits per channel and no value above 4095, and would be nearly black; set --data.bits 12",
    ),
    "PNG of 16 bits, all black": (as_file(lambda: deep_png(0), "photo.png"), f"{READ}, brightest 0"),
    "PNG, colours of 16 bits": (as_file(lambda: deep_colour_png(65535), "photo.png"), f"{READ}, brightest 255"),
    "PNG, colours of 16 bits with values of 12": (
        as_file(lambda: deep_colour_png(4095), "photo.png"),
        f"{REFUSED}has 16 bits per channel and no value above",
    ),
    "TIFF of 16 bits, big-endian": (as_file(lambda: tiff(grey(65535, ">u2")), "photo.tif"), f"{READ}, brightest 255"),
    "TIFF of 16 bits that states a largest value of 3000": (
        as_file(lambda: tiff(grey(3000), {341: 3000}), "photo.tif"),
        f"{READ}, brightest 255",
    ),
    "TIFF of 12 bits, packed": (as_file(packed_tiff, "photo.tif"), f"{READ}, brightest 255"),
    "TIFF with a value above the largest that it states": (
        as_file(lambda: tiff(grey(4095), {341: 3000}), "photo.tif"),
        f"{REFUSED}has the value 4095, and white is 3000",
    ),
    "PGM with a maximum of 4095": (
        as_file(lambda: b"P5 40 30 4095\n" + deep(4095).astype(">u2").tobytes(), "photo.pgm"),
        f"{READ}, brightest 255",
    ),
    "PGM with a maximum of 65535 and values of 12 bits": (
        as_file(lambda: b"P5 40 30 65535\n" + deep(4095).astype(">u2").tobytes(), "photo.pgm"),
        f"{REFUSED}has 16 bits per channel and no value above 4095",
    ),
    "TIFF of 32 bits": (as_file(lambda: tiff(grey(99, "<i4")), "photo.tif"), f"{REFUSED}has 32 bits per channel"),
    "TIFF of floating-point values": (as_file(lambda: tiff(grey(1, "<f4")), "photo.tif"), f"{REFUSED}has 32 bits"),
    "TIFF in CIE Lab": (
        as_file(lambda: tiff(Image.new("LAB", (9, 9))), "photo.tif"),
        f"{REFUSED}has the colours LAB, which do not become RGB",
    ),
    # Damaged, and something else.
    "nothing": (as_file(b""), f"{REFUSED}it is empty"),
    "one byte": (as_file(b"\xff"), f"{REFUSED}it is of no known kind"),
    "nothing but zeros": (as_file(bytes(5000)), f"{REFUSED}it is nothing but zeros"),
    "random bytes": (as_file(np.random.default_rng(0).bytes(5000)), f"{REFUSED}it is of no known kind"),
    "a JPEG that was cut off": (as_file(lambda: jpeg()[:-100]), f"{REFUSED}image file is truncated"),
    "a JPEG that was cut off and has an end (the decoder makes the rest up)": (
        as_file(lambda: jpeg()[:-100] + b"\xff\xd9"),
        READ,
    ),
    "a JPEG with a changed byte (it has no checksum)": (
        as_file(lambda: changed(encoded(picture().resize((400, 300)), "JPEG"))),
        "read, 400 x 300",
    ),
    "a JPEG's header": (as_file(lambda: jpeg()[:200]), REFUSED),
    "a JPEG without its first bytes": (as_file(lambda: jpeg()[20:]), f"{REFUSED}it is of no known kind"),
    "half a PNG": (as_file(lambda: half(encoded(picture(), "PNG")), "photo.png"), REFUSED),
    "a PNG with a changed byte": (as_file(lambda: changed(encoded(picture(), "PNG")), "photo.png"), REFUSED),
    "a PNG with a wrong checksum of whole pixels": (
        as_file(lambda: broken_crc(encoded(picture(), "PNG"), b"IDAT"), "photo.png"),
        READ,
    ),
    "a PNG with a wrong checksum of its header": (
        as_file(lambda: broken_crc(encoded(picture(), "PNG"), b"IHDR"), "photo.png"),
        REFUSED,
    ),
    "half a GIF": (as_file(lambda: half(encoded(picture("P"), "GIF")), "photo.gif"), REFUSED),
    "half a WebP": (as_file(lambda: half(encoded(picture(), "WEBP")), "photo.webp"), REFUSED),
    "half a TIFF": (as_file(lambda: half(tiff(picture())), "photo.tif"), REFUSED),
    "half a BMP": (as_file(lambda: half(encoded(picture(), "BMP")), "photo.bmp"), REFUSED),
    "half an AVIF": (as_file(lambda: half(encoded(picture(), "AVIF")), "photo.avif"), f"{REFUSED}it is a damaged AVIF"),
    "half a HEIC, with the extra `heic`": (
        as_file(lambda: half(encoded(picture(), "HEIF")), "photo.heic"),
        f"{REFUSED}it is a damaged HEIC",
    ),
    "a GIF of no pixels": (as_file(b"GIF89a" + bytes(7) + b";", "photo.gif"), REFUSED),
    "601 times as long as wide": (
        as_file(lambda: encoded(Image.new("RGB", (601, 1)), "PNG"), "photo.png"),
        f"{REFUSED}has 601 x 1 pixels, too long and thin",
    ),
    "195 million pixels": (as_file(huge, "photo.png"), f"{REFUSED}has more than the 179 million pixels that are read"),
    "a web page": (as_file(b"<!DOCTYPE html><title>404</title>"), f"{REFUSED}it is a web page"),
    "a server's answer in JSON": (as_file(b'{"error": 403}'), f"{REFUSED}it is of no known kind"),
    "a Git LFS pointer": (
        as_file(b"version https://git-lfs.github.com/spec/v1\n"),
        f"{REFUSED}it is a Git LFS pointer",
    ),
    "a PDF called `.jpg`": (as_file(b"%PDF-1.7\n"), f"{REFUSED}it is a PDF"),
    "SVG called `.png`": (as_file(b"<svg></svg>", "photo.png"), f"{REFUSED}it is XML or SVG"),
    "PostScript called `.png`": (as_file(b"%!PS-Adobe-3.0 EPSF-3.0\n", "photo.png"), f"{REFUSED}it is PostScript"),
    "a zip archive called `.jpg`": (as_file(b"PK\3\4" + bytes(99)), f"{REFUSED}it is a zip archive"),
    "a gzipped file called `.jpg`": (as_file(b"\x1f\x8b" + bytes(99)), f"{REFUSED}it is gzip"),
    "a Photoshop file called `.jpg`": (as_file(b"8BPS" + bytes(99)), f"{REFUSED}it is a Photoshop file"),
    "a video called `.jpg`": (as_file(video), f"{REFUSED}it is a video"),
    "JPEG 2000 called `.jpg`": (as_file(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99)), f"{REFUSED}it is JPEG 2000"),
    "JPEG XL called `.jpg`": (as_file(b"\xff\x0a" + bytes(99)), f"{REFUSED}it is JPEG XL"),
    # Names and places.
    "a name with blanks, quotes and a line break": (as_file(jpeg, 'my "best"\n photo\'s.jpg'), READ),
    "a name that is not UTF-8": (as_file(jpeg, os.fsdecode(b"caf\xe9.jpg")), READ),
    "a name of 255 bytes": (as_file(jpeg, "x" * 251 + ".jpg"), READ),
    "in a folder inside the class": (as_file(jpeg, "2026/may/photo.jpg"), READ),
    "in a folder that is called `photos.jpg`": (as_file(jpeg, "photos.jpg/1.jpg"), READ),
    "a link to an image": (linked_file, READ),
    "in a linked folder": (linked_folder, READ),
    "a link that leads nowhere": (
        lambda folder: (folder / "photo.jpg").symlink_to("/nowhere/x.jpg"),
        "stops: photo.jpg is a link to /nowhere/x.jpg, which does not exist",
    ),
    "a link that leads back": (
        lambda folder: (folder / "again").symlink_to(".."),
        "stops: again leads back to a folder above it",
    ),
    "a pipe called `.jpg`": (lambda folder: os.mkfifo(folder / "photo.jpg"), OTHER),
    # Skipped, and counted.
    "in `.ipynb_checkpoints`": (as_file(jpeg, ".ipynb_checkpoints/photo.jpg"), HIDDEN),
    "macOS's `._photo.jpg`": (as_file(b"\0\5\26\7\0\2\0\0Mac OS X", "._photo.jpg"), HIDDEN),
    "in `__MACOSX`": (as_file(jpeg, "__MACOSX/photo.jpg"), HIDDEN),
    "`.DS_Store`": (as_file(b"\0\0\0\1Bud1", ".DS_Store"), HIDDEN),
    "`Thumbs.db`": (as_file(b"\xd0\xcf\x11\xe0", "Thumbs.db"), OTHER),
    "`notes.txt`": (as_file(b"notes", "notes.txt"), OTHER),
    "a JPEG without an ending": (as_file(jpeg, "photo"), OTHER),
    "an editor's `photo.jpg~`": (as_file(jpeg, "photo.jpg~"), OTHER),
    "a browser's `photo.jpg.part`": (as_file(lambda: half(jpeg()), "photo.jpg.part"), OTHER),
    "a video": (as_file(video, "film.mp4"), OTHER),
    "JPEG 2000": (as_file(b"\0\0\0\x0cjP  \r\n\x87\n", "photo.jp2"), PHOTOGRAPH),
    "JPEG XL": (as_file(b"\xff\x0a", "photo.jxl"), PHOTOGRAPH),
    "a camera's raw file": (as_file(b"II*\0", "photo.DNG"), PHOTOGRAPH),
    "a Photoshop file": (as_file(b"8BPS", "photo.psd"), PHOTOGRAPH),
    "SVG": (as_file(b"<svg></svg>", "photo.svg"), PHOTOGRAPH),
}


def result_of(make: Make, folder: Path) -> str:
    """What becomes of the one file that `make` leaves in a class's folder."""
    inside = folder / "class"
    inside.mkdir()
    make(inside)
    try:
        listing = list_folder(inside)
    except ImageError as error:
        return "stops: " + str(error).replace(f"{inside}/", "")
    if not listing.images:
        return PHOTOGRAPH if listing.photographs else HIDDEN if listing.hidden else OTHER
    (name,) = listing.images
    try:
        image = read_image(inside / name).convert("RGB")
    except ImageError as error:
        return REFUSED + short_reason(error, inside / name)
    return f"read, {image.width} x {image.height}, brightest {np.asarray(image).max()}"


def main() -> None:
    """Prints the table."""
    rows = []
    for name, (make, promise) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append((name, promise.removesuffix(": "), result_of(make, Path(folder))))
    print(markdown_table(("what a class's folder holds", "promise", "result"), rows))


if __name__ == "__main__":
    main()
