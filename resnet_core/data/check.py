"""Whether every image of a folder can be read, and whether images to evaluate on are also trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import PIL
from PIL import features

from resnet_core.data.folders import WHOLE, FolderOptions, OwnImages, check_source, folders_in
from resnet_core.data.images import HASHES, MOST_BITS, ImageError, Listing, list_folder, opened, read_image
from resnet_core.data.loaders import in_groups
from resnet_core.data.manifest import FileRecord, hash_of, record_of, to_csv
from resnet_core.data.splits import Dataset, ImageFiles
from resnet_core.foundation.atomic import replace_file

MOST_HEADERS = 20_000  # files, of which the headers are read in two seconds
MOST_SHOWN = 3
EXCLUDE_HEAD = "# Images that `resnet-core data check` found; `--data.exclude` leaves them out of training.\n"


@dataclass(frozen=True)
class Problem:
    """An image that cannot be used as it is."""

    path: str
    """Inside the folder of the data."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found in the files of a folder or of a CSV list."""

    path: str
    decoder: str
    """What decoded the images: another one may accept others."""
    images: int
    unreadable: tuple[Problem, ...]
    duplicates: tuple[Problem, ...]
    """Images to train on whose bytes are also those of an image to evaluate on."""
    skipped: str
    """What is not read, in words."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.unreadable + self.duplicates


def decoder() -> str:
    """The decoder's name and version, with that of its JPEG library."""
    turbo = features.version("libjpeg_turbo")
    return f"Pillow {PIL.__version__}" + (f" with libjpeg-turbo {turbo}" if turbo else "")


def check_images(
    path: str | Path, *, bits: int = 0, workers: int = 0, advance: Callable[[int, int], None] = lambda done, total: None
) -> CheckReport:
    """Decodes every image of a folder or a CSV list, and writes the hashes of the files into the folder.

    `advance(done, total)` is called as files are done. Raises ValueError for a path that is neither, or without images.
    """
    path = Path(path)
    check_source(path)
    if not 0 <= bits <= MOST_BITS:
        raise ValueError(f"bits must be in 0..{MOST_BITS}, got {bits}")
    root = path if path.is_dir() else path.parent
    parts, skipped = images_of(path)
    names = [name for found in parts.values() for name in found]
    if not names:
        skips = f"; skipped: {skipped}" if str(skipped) else ""
        raise ValueError(f"{path} holds no images{skips}; name the folder of the images")

    # Each file is decoded and hashed once.
    results = list(in_groups(partial(examined, root, bits), names, workers=workers, advance=advance))
    records = [record for record, _ in results if record]
    hashes_note = write_hashes(root, records)

    return CheckReport(
        path=str(path),
        decoder=decoder(),
        images=len(names),
        unreadable=tuple(Problem(name, reason) for name, (_, reason) in zip(names, results, strict=True) if reason),
        duplicates=duplicates(parts, {each.path: each.sha256 for each in records}),
        skipped="; ".join(filter(None, (str(skipped), hashes_note))),
    )


def check_headers(dataset: Dataset) -> None:
    """Raises ImageError, with the command that finds all, where files of a small set are no images by their headers.

    Larger sets take too long for every start; what a header does not show is found when the image is decoded.
    """
    parts = [part for part in (dataset.train, dataset.test) if isinstance(part, ImageFiles)]
    paths = [part.path(index) for part in parts for index in range(len(part))]
    if len(paths) > MOST_HEADERS:
        return
    damaged = []
    for path in paths:
        try:
            with opened(path):
                pass
        except ImageError as error:
            damaged.append(f"{path}: {short_reason(error, path)}")
    if damaged:
        more = f" and {len(damaged) - MOST_SHOWN:,} more" if len(damaged) > MOST_SHOWN else ""
        count = "1 image" if len(damaged) == 1 else f"{len(damaged):,} images"
        raise ImageError(
            f"{count} cannot be used ({'; '.join(damaged[:MOST_SHOWN])}{more}); replace or remove them, or let "
            "`resnet-core data check` find all of them and write a list for --data.exclude"
        )


def short_reason(error: ImageError, path: Path) -> str:
    """Why an image cannot be used, without its path."""
    text = str(error).removeprefix(f"{path} ")
    _, is_no_image, reason = text.partition("is not a whole image (")
    return reason.partition("); ")[0] if is_no_image else text


def examined(root: Path, bits: int, names: Sequence[str]) -> list[tuple[FileRecord | None, str]]:
    """For each file its record with the hash, and why it cannot be used; empty where it can."""
    found: list[tuple[FileRecord | None, str]] = []
    for name in names:
        path, record, reason = root / name, None, ""
        try:
            record = replace(record_of(str(path), root), sha256=hash_of(path))
            read_image(path, bits)
        except OSError as error:
            reason = f"{name}: {error.strerror}"
        except ImageError as error:
            reason = f"{name}: {short_reason(error, path)}"
        found.append((record, reason))
    return found


def images_of(path: Path) -> tuple[dict[str, list[str]], Listing]:
    """Part -> the images in it, as paths inside the folder of the data; and what is skipped."""
    own = OwnImages(path, FolderOptions())
    skipped = own.skipped
    found = {part: [name for names in each.files.values() for name in names] for part, each in own.listed.items()}
    if found:
        return found, skipped

    for part, folder in (own.folders or {WHOLE: path}).items():
        listing = list_folder(folder)
        prefix = f"{folder.name}/" if part != WHOLE else ""
        found[part] = [prefix + name for name in listing.images]
        filled = {name.partition("/")[0] for name in listing.images}
        skipped.empty += [prefix + name for name in folders_in(folder) if name not in filled]
        skipped.add(listing, prefix)
    if own.folders:
        skipped.folders += [name for name in folders_in(path) if path / name not in own.folders.values()]
    return found, skipped


def duplicates(parts: dict[str, list[str]], hashes: dict[str, str]) -> tuple[Problem, ...]:
    """The images to train on whose bytes are also in another part or, where a share will be held back, came before."""
    known = {hashes[name]: name for part in ("val", "test") for name in parts.get(part, ()) if name in hashes}
    found = []
    for name in parts.get("train", parts.get(WHOLE, [])):
        sha256 = hashes.get(name)
        if sha256 in known:
            found.append(Problem(name, f"{name}: the same bytes as {known[sha256]}"))
        elif sha256 and WHOLE in parts:
            known[sha256] = name
    return tuple(found)


def write_hashes(root: Path, records: Sequence[FileRecord]) -> str:
    """Writes the hashes into the folder of the data, for `files_of`; in words why it could not, or nothing."""
    try:
        replace_file(root / HASHES, to_csv(records))
    except OSError as error:
        return f"the files' hashes were not kept, since {root} cannot be written ({error.strerror})"
    return ""


def check_exclude(path: Path) -> None:
    """Raises ValueError for a file that `write_exclude` would replace without having written it."""
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(EXCLUDE_HEAD.encode())):
        raise ValueError(f"{path} exists and is not such a list; choose another file with --write-exclude")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder; create it, or choose another file with --write-exclude")


def write_exclude(path: Path, problems: Sequence[Problem]) -> None:
    """Writes the list that `--data.exclude` reads. Raises ValueError where that cannot be."""
    if broken := [each.path for each in problems if "\n" in each.path]:
        raise ValueError(f"{broken[0]!r} has a line break in its name, which a list cannot hold; rename that file")

    lines = [
        f"# {' '.join(each.reason.split())}\n{'./' if each.path.startswith('#') else ''}{each.path}\n"
        for each in problems
    ]
    data = "".join([EXCLUDE_HEAD, *lines]).encode(errors="surrogateescape")
    try:
        replace_file(path, data)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); choose another file with --write-exclude"
        ) from error
