"""Your own images: folders of classes, or a list in a CSV file, and how they are split for training and evaluation.

Nothing is left out in silence: what is not read is counted in the dataset's notes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from resnet_core.data.images import (
    OWN_FILES,
    PHOTOGRAPHS,
    ImageError,
    Listing,
    ending_of,
    endings,
    examples,
    is_hidden,
    list_folder,
    refuse_dangling,
)
from resnet_core.data.manifest import LONGEST_PATH
from resnet_core.data.splits import Dataset, ImageFiles
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import shortened

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")

# A folder's name, in any case, or a split in a list -> the part of the data that it is.
PARTS = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "val"), "test": "test"}
WHOLE = ""  # the part that is the whole dataset, where there are no others
LIKE_A_PART = re.compile(r"(?<![a-z])(train|val|valid|test)(ing|ation)?(?![a-z])", re.IGNORECASE)  # seg_train, Testing


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How a folder of images is read; `DataConfig` explains the settings."""

    val_share: float = 0.0
    val_seed: int = 0
    exclude: str = ""
    bits: int = 0


@dataclass(frozen=True)
class Part:
    """A part of a dataset before its classes have numbers."""

    folder: Path
    where: str
    """What people call it."""
    files: dict[str, list[str]]
    """Class -> paths inside the folder, in order."""

    def images(self, class_names: Sequence[str], bits: int) -> ImageFiles:
        """Its images, labelled with the numbers of these classes."""
        found = [self.files.get(name, []) for name in class_names]
        labels = torch.arange(len(found)).repeat_interleave(torch.tensor([len(files) for files in found]))
        return ImageFiles(
            self.folder, np.array([os.fsencode(name) for files in found for name in files]), labels, bits=bits
        )


def load_image_folder(path: Path, options: FolderOptions | None = None) -> Dataset:
    """Your own images, of any size, decoded by workers: `path/train/CLASS/*` and `path/val/CLASS/*`, or a CSV list.

    Evaluation transforms images as torchvision does for its first ImageNet weights: shorter side 256, centre crop
    224 x 224.
    """
    own = OwnImages(path, options or FolderOptions())
    own.require_parts_to_train()
    train, evaluated = own.part("train"), own.part(own.evaluated)

    names = tuple(sorted(train.files))
    if unknown := sorted(set(evaluated.files) - set(names)):
        letters = [{unicodedata.normalize("NFC", name) for name in each} for each in (unknown, names)]
        encoding = "" if letters[0].isdisjoint(letters[1]) else " (the same letters, but other Unicode characters)"
        raise ValueError(
            f"{evaluated.where} has classes that {train.where} lacks: {shortened(unknown, most=20)}{encoding}; rename "
            "or remove them"
        )

    notes = own.notes(evaluated)
    if missing := [name for name in names if not evaluated.files.get(name)]:
        notes["evaluation"] += f"; it has no images of {shortened(missing)}"
    return Dataset(
        train=train.images(names, own.options.bits),
        test=evaluated.images(names, own.options.bits),
        class_names=names,
        transform=ImageTransform(resize_size=256, crop_size=224, bits=own.options.bits),
        notes=tuple(notes.items()),
    )


def load_test_folder(
    path: Path, options: FolderOptions | None = None, split: str = ""
) -> tuple[ImageFiles, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Images to evaluate on, their classes, and notes: the part `split`, by default the one that training evaluates.

    A folder of classes without parts is evaluated as a whole.
    """
    own = OwnImages(path, options or FolderOptions())
    is_whole = own.names == {WHOLE} and not own.options.val_share
    part = own.part(split or (WHOLE if is_whole else own.evaluated))
    names = tuple(sorted(part.files))
    return part.images(names, own.options.bits), names, tuple(own.notes(part).items())


class OwnImages:
    """The parts of a folder of images or of a CSV list, and what is skipped of those that have been read.

    Where there is no validation part, `options.val_share` of the training images are held back as one, or else `test`
    is evaluated. Folders of classes without parts are one part, the whole, which `val_share` splits as well. Raises
    ValueError for a layout that is none of these.
    """

    def __init__(self, path: Path, options: FolderOptions) -> None:
        self.path, self.options = path, options
        self.root = path if path.is_dir() else path.parent
        self.excluded = read_exclude(options.exclude)
        self.skipped = Listing()
        self.nested: list[str] = []
        self.listed = {} if path.is_dir() else read_list(path)
        self.folders = part_folders(path) if path.is_dir() else {}
        self.names = {*self.listed, *self.folders} or {WHOLE}
        if self.folders:
            self._skip_loose(path, folders_in(path), "")
        if options.val_share and "val" in self.names:
            raise ValueError(f"{path} has images for validation; leave out --data.val-share {options.val_share:g}")

    @property
    def evaluated(self) -> str:
        """The part that training evaluates."""
        if "val" in self.names or self.options.val_share:
            return "val"
        if "test" in self.names:
            return "test"
        raise ValueError(
            f"{self.path} has no {self.kind} val or test to evaluate on, only train; add one, or choose --split train"
        )

    def require_parts_to_train(self) -> None:
        """Raises ValueError where there is nothing to train on, or nothing to evaluate on."""
        if self.options.val_share or self.names not in ({WHOLE}, {"train"}):
            return
        is_whole = self.names == {WHOLE}
        lacking = "train" if is_whole else "val or test to evaluate on"
        remedy = f"put images into {f'{self.path}/train/CLASS and ' if is_whole else ''}{self.path}/val/CLASS"
        if self.listed:
            remedy = f"write {'train and val' if is_whole else 'val for some images'} into the column split"
        raise ValueError(
            f"{self.path} has no {self.kind} {lacking}; {remedy}, or hold back a fifth of the images with "
            "--data.val-share 0.2"
        )

    @property
    def kind(self) -> str:
        """What people call a part."""
        return "split" if self.listed else "folder"

    def part(self, name: str) -> Part:
        """The part of that name. Raises ValueError where it does not exist or has no images."""
        if self.options.val_share and name != "test":
            return self._held_back[name]
        return self._required(name)

    def _required(self, name: str) -> Part:
        if name in self.names:
            return self._read(name)
        found = sorted(self.names - {WHOLE})
        if self.path.is_dir() and (name == "train" or not found):
            found = [*folders_in(self.path)]
        raise ValueError(
            f"{self.path} has no {self.kind} {name}, only {shortened(found)}; add it, or choose other data"
            if found
            else f"{self.path} has no column split; add it, or choose other data"
        )

    @cached_property
    def _held_back(self) -> dict[str, Part]:
        """Training and validation parts, drawn from one: the same files whatever else the folder holds."""
        share, seed = self.options.val_share, self.options.val_seed
        whole = self._read(WHOLE) if self.names == {WHOLE} else self._required("train")

        kept: dict[str, list[str]] = {}
        held: dict[str, list[str]] = {}
        for name, files in whole.files.items():
            drawn = sorted(files, key=partial(draw, seed))
            count = min(max(round(share * len(files)), 1), len(files) - 1)
            taken = set(drawn[:count])
            kept[name] = [file for file in files if file not in taken]
            held[name] = [file for file in files if file in taken]
        if not any(held.values()):
            raise ValueError(
                f"{whole.where} has one image of each class, so none can be held back for validation; add images"
            )
        where = f"a share of {share:g} of each class in {whole.where}, drawn with --data.val-seed {seed}"
        rest = f"{whole.where} without the images held back for validation"
        return {"train": Part(whole.folder, rest, kept), "val": Part(whole.folder, where, held)}

    def _read(self, name: str) -> Part:
        """The part's images that are not excluded; what is not read is added to `skipped`."""
        if name in self.listed:
            return self._checked(self.listed[name])
        folder = self.folders.get(name, self.path)
        class_names = class_folders(folder)
        prefix = f"{folder.relative_to(self.path)}/" if folder != self.path else ""

        self._skip_loose(folder, class_names, prefix)
        files = {}
        for class_name in class_names:
            listing = list_folder(folder / class_name)
            inside = f"{prefix}{class_name}/"
            self.skipped.add(listing, inside)
            if not listing.images:
                there = f" that are read (it holds {examples(listing.photographs)})" if listing.photographs else ""
                raise ImageError(
                    f"{folder / class_name} is a folder without images{there}; known endings are "
                    f"{', '.join(sorted(endings()))}; put images there, or remove the folder"
                )
            inner = [inside + each for each in listing.images if "/" in each]
            if name == WHOLE and len(inner) == len(listing.images):
                refuse_parts(folder / class_name)
            self.nested += inner
            files[class_name] = [f"{class_name}/{each}" for each in listing.images]
        return self._checked(Part(folder, str(folder), files))

    def _skip_loose(self, folder: Path, shown: Collection[str], prefix: str) -> None:
        """Notes what lies in a folder beside the folders that are `shown`."""
        for entry in sorted(set(os.listdir(folder)) - {*shown, *OWN_FILES}):
            if is_hidden(entry):
                self.skipped.hidden.append(prefix + entry)
            else:
                is_image = ending_of(entry) in endings() | PHOTOGRAPHS
                (self.skipped.outside if is_image else self.skipped.other).append(prefix + entry)

    def _checked(self, part: Part) -> Part:
        """Without what is on the exclude list. Raises ValueError for a class of which nothing is left."""
        if not self.excluded:
            return part
        prefix = f"{part.folder.relative_to(self.root)}/" if part.folder != self.root else ""
        files = {}
        for class_name, names in part.files.items():
            listed = {name: (prefix + name).removeprefix("./") for name in names}
            files[class_name] = [name for name, path in listed.items() if path not in self.excluded]
            self.skipped.excluded += sorted(self.excluded.intersection(listed.values()))
            if not files[class_name]:
                raise ValueError(
                    f"{self.options.exclude} excludes every image of {class_name} in {part.where}; shorten that list, "
                    "or remove the class"
                )
        return Part(part.folder, part.where, files)

    def notes(self, evaluated: Part) -> dict[str, str]:
        """What people should know of the parts that have been read, of which this one is evaluated."""
        notes = {"evaluation": evaluated.where}
        others = sorted(set(self.listed) - {WHOLE, "train"})
        unread = [f"split {name}" for name in others if self.listed[name].where != evaluated.where]
        if self.folders:
            read = {self.folders.get("train"), evaluated.folder}
            unread = [name for name in folders_in(self.path) if self.path / name not in read]
        if unread:
            notes["evaluation"] += f"; {shortened(unread)} {'is' if len(unread) == 1 else 'are'} not read"
        if self.nested:
            lie = "image lies in a folder" if len(self.nested) == 1 else "images lie in folders"
            notes["nested"] = f"{len(self.nested):,} {lie} inside a class: {shortened(self.nested)}"
        if skipped := str(self.skipped):
            notes["skipped"] = skipped
        absent = sorted(
            name for name in self.excluded if (name[0] == "/" and not self.listed) or not (self.root / name).exists()
        )
        if absent:
            notes["exclude list"] = f"names {len(absent):,} that are no files inside {self.root}: {shortened(absent)}"
        return notes


def draw(seed: int, name: str) -> bytes:
    """A number in place of a name, to sort by: it depends on nothing else."""
    return hashlib.blake2b(f"{seed}/".encode() + os.fsencode(name), digest_size=8).digest()


def part_folders(path: Path) -> dict[str, Path]:
    """Part -> its folder, for each that there is. Raises ValueError where two folders are the same part."""
    found: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        part = PARTS.get(entry.name.lower())
        if part is None or not entry.is_dir():
            continue
        if part in found:
            raise ValueError(
                f"{path} holds both {found[part].name} and {entry.name}, which are the same part of the data; keep one "
                "of them, or join them"
            )
        found[part] = entry
    return found


def refuse_parts(folder: Path) -> None:
    """Raises ValueError for a folder that is a part of the data by its name or by the names of its folders."""
    if len(parts := part_folders(folder)) > 1:
        raise ValueError(f"{folder} is not a class, since it has the parts {', '.join(parts)}; name that folder")
    if LIKE_A_PART.search(folder.name):
        raise ValueError(
            f"{folder} is named like a part of the data, and holds folders; call the parts train, and val or test, or "
            "give it another name if it is a class"
        )


def class_folders(folder: Path) -> tuple[str, ...]:
    """The classes: sorted names of the folders inside, without hidden ones.

    Raises ImageError for a dangling link, and ValueError where there are none or a name is not text.
    """
    refuse_dangling(path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
    names = folders_in(folder)
    if not names:
        is_class = f", or rename it if {folder.name} is a class" if folder.name.lower() in PARTS else ""
        raise ValueError(f"{folder} has no class folders; put its images as {folder}/CLASS/IMAGE{is_class}")
    for name in names:
        refuse_other_encoding(name, f"{folder} has a class folder")
    return names


def refuse_other_encoding(class_name: str, where: str) -> None:
    """Raises ValueError for a class whose name no run could record."""
    try:
        class_name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} {class_name!a}, which is not UTF-8; write that name in UTF-8") from error


def folders_in(path: Path) -> tuple[str, ...]:
    """Sorted names of the folders inside, without hidden ones."""
    return tuple(sorted(each.name for each in path.iterdir() if each.is_dir() and not is_hidden(each.name)))


def check_source(path: Path, *, may_be_list: bool = True) -> None:
    """Raises ValueError for a path that is neither a folder nor, where that may be, a CSV list."""
    wanted = f"the folder of the images{' or a CSV list' if may_be_list else ''}"
    if not path.exists():
        raise ValueError(f"{path} does not exist; name {wanted}")
    if not path.is_dir() and not (may_be_list and path.suffix.lower() == ".csv"):
        unpack = "unpack it, and " if path.suffix.lower() in ARCHIVES else ""
        raise ValueError(f"{path} is a file; {unpack}name {wanted}")


def read_list(path: Path) -> dict[str, Part]:
    """The parts of a CSV file with the columns path, label and, if it has one, split; paths begin at its folder.

    Raises ValueError naming the line that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a folder of images or a CSV file") from error
    if "\0" in text:
        raise ValueError(f"{path} is not a list in UTF-8; name a folder of images, or save the list as CSV in UTF-8")
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        if [columns.count(name) for name in ("path", "label", "split")] not in ([1, 1, 0], [1, 1, 1]):
            raise ValueError(
                f"{path} has the columns {', '.join(columns)[:80] or 'none'}; it needs path and label, and may have "
                "split, each once and separated by commas"
            )
        parts = parts_of(rows, path)
    except csv.Error as error:
        raise ValueError(
            f"{path} is not CSV from line {rows.line_num + 1} on ({error}); close what is in quotes, and double quotes "
            "inside it"
        ) from error
    if not parts:
        raise ValueError(f"{path} lists no images; give each a line: path,label")
    return parts


def parts_of(rows: csv.DictReader[str], path: Path) -> dict[str, Part]:
    """The parts of a list's rows. Raises ValueError naming the line that cannot be used."""
    has_splits = "split" in (rows.fieldnames or ())
    parts: dict[str, Part] = {}
    seen: dict[str, int] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        name, label, split = (row.get(column) or "" for column in ("path", "label", "split"))
        label = label.strip()
        part = PARTS.get(split.strip().lower(), "") if has_splits else WHOLE
        if any(row.get(None) or ()):
            raise ValueError(f"{where} has more values than columns; put a value that holds a comma into quotes")
        if not name or not label:
            raise ValueError(f"{where} has no {'path' if not name else 'label'}; fill it in, or remove it")
        if has_splits and not part:
            raise ValueError(f"{where} has the split {split!r}; choose one of {', '.join(PARTS)}")
        if not (path.parent / name).is_file():
            remedy = "write / between folders" if "\\" in name else "correct the path"
            file = shortened([str(path.parent / name)], longest=LONGEST_PATH)
            raise ValueError(f"{where} names {file}, which is not a file; {remedy}")
        refuse_other_encoding(label, f"{where} has the label")
        file = os.path.normpath(path.parent / name)
        if file in seen:
            raise ValueError(f"{path}, lines {seen[file]} and {rows.line_num} both name {name}; remove one of them")

        seen[file] = rows.line_num
        of_part = f"{path}, split {part}" if part else str(path)
        parts.setdefault(part, Part(path.parent, of_part, {})).files.setdefault(label, []).append(name)
    return parts


def read_exclude(path: str) -> frozenset[str]:
    """The images to leave out, from a file that `data check --write-exclude` wrote: a path a line, # for comments."""
    if not path:
        return frozenset()
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct data.exclude") from error
    return frozenset(line.removeprefix("./") for line in text.split("\n") if line and not line.startswith("#"))
