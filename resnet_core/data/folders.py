"""Your own images: folders of classes, or a list in a CSV file, and how they are split for training and evaluation.

Nothing is left out in silence: what is not read is counted in the dataset's notes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from resnet_core.data.images import (
    HEIC,
    HEIC_REMEDY,
    PHOTOGRAPHS,
    ImageError,
    endings,
    is_hidden,
    list_folder,
    refuse_dangling,
)
from resnet_core.data.manifest import OWN_FILES
from resnet_core.data.splits import Dataset, ImageFiles
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import shortened

# Part of the data -> the names that its folder may have, in any case.
PARTS = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
WHOLE = ""  # the part that is the whole dataset, where there are no others


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How a folder of images is read; `DataConfig` explains the settings."""

    val_share: float = 0.0
    val_seed: int = 0
    exclude: str = ""
    bits: int = 0


@dataclass
class Skipped:
    """What is not read of a dataset, by its reason; names are paths inside its folder."""

    photographs: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """In one line; empty where nothing is skipped."""
        heic = [name for name in self.photographs if ending_of(name) in HEIC]
        reasons = {
            f"HEIC photographs ({HEIC_REMEDY})": heic,
            "photographs that are not read (save them as JPEG or PNG)": sorted(set(self.photographs).difference(heic)),
            "images outside any class folder": self.outside,
            "hidden names": self.hidden,
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
    train, evaluated = own.part("train"), own.part(own.evaluated)

    names = tuple(sorted(train.files))
    if set(evaluated.files) - set(names):
        raise ValueError(
            f"{train.where} and {evaluated.where} must have the same classes; only in one of them: "
            f"{shortened(sorted(set(names) ^ set(evaluated.files)), most=20)}; rename or remove them"
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
    part = own.part(split or (WHOLE if own.is_whole else own.evaluated))
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
        self.skipped = Skipped()
        self.listed = {} if path.is_dir() else read_list(path)
        self.folders = part_folders(path) if path.is_dir() else {}
        self.names = {*self.listed, *self.folders} or {WHOLE}
        if self.folders:
            self._skip_loose(path, folders_in(path), "")
        if options.val_share and "val" in self.names:
            raise ValueError(f"{path} has images for validation; leave out --data.val-share {options.val_share:g}")

    @property
    def is_whole(self) -> bool:
        return self.names == {WHOLE} and not self.options.val_share

    @property
    def evaluated(self) -> str:
        """The part that training evaluates."""
        if "val" in self.names or self.options.val_share:
            return "val"
        if "test" in self.names:
            return "test"
        self._require("train")
        remedy = "give some lines the split val" if self.listed else f"put some images as {self.path}/val/CLASS/IMAGE"
        raise ValueError(
            f"{self.path} has no {self.kind} val or test to evaluate on; {remedy}, or train with --data.val-share 0.2, "
            "which holds back a fifth of the training images"
        )

    @property
    def kind(self) -> str:
        """What people call a part."""
        return "split" if self.listed else "folder"

    def part(self, name: str) -> Part:
        """The part of that name. Raises ValueError where it does not exist or has no images."""
        if self.options.val_share and name != "test":
            return self._held_back[name]
        self._require(name)
        return self._read(name)

    def _require(self, name: str) -> None:
        if name in self.names:
            return
        if name == "train" and self.names == {WHOLE}:
            remedy = (
                f"put the images as {self.path}/train/CLASS/IMAGE and {self.path}/val/CLASS/IMAGE, or split its class "
                "folders"
            )
            if self.listed:
                remedy = "add the column split with train and val, or hold back a fifth of the images"
            raise ValueError(f"{self.path} has no {self.kind} train; {remedy} with --data.val-share 0.2")
        found = folders_in(self.path) if name == "train" and self.folders else sorted(self.names)
        raise ValueError(f"{self.path} has no {self.kind} {name}; it has {shortened(found)}")

    @cached_property
    def _held_back(self) -> dict[str, Part]:
        """Training and validation parts, drawn from one: the same files whatever else the folder holds."""
        share, seed = self.options.val_share, self.options.val_seed
        whole = self._read(WHOLE if self.names == {WHOLE} else "train")

        kept: dict[str, list[str]] = {}
        held: dict[str, list[str]] = {}
        for name, files in whole.files.items():
            drawn = sorted(files, key=partial(draw, seed))
            count = min(max(round(share * len(files)), 1), len(files) - 1)
            taken = set(drawn[:count])
            kept[name] = [file for file in files if file not in taken]
            held[name] = [file for file in files if file in taken]
        where = f"a share of {share:g} of each class in {whole.where}, drawn with --data.val-seed {seed}"
        return {"train": Part(whole.folder, whole.where, kept), "val": Part(whole.folder, where, held)}

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
            self.skipped.photographs += [inside + each for each in listing.photographs]
            self.skipped.hidden += [inside + each for each in listing.hidden]
            self.skipped.other += [inside + each for each in listing.other]
            if not listing.images:
                there = f" that are read (it holds {examples(listing.photographs)})" if listing.photographs else ""
                raise ImageError(
                    f"{folder / class_name} is a folder without images{there}; known endings are "
                    f"{', '.join(sorted(endings()))}"
                )
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
            files[class_name] = [name for name in names if prefix + name not in self.excluded]
            self.skipped.excluded += [prefix + name for name in names if prefix + name in self.excluded]
            if not files[class_name]:
                raise ValueError(
                    f"{self.options.exclude} excludes every image of {class_name} in {part.where}; shorten that list, "
                    "or remove the class"
                )
        return Part(part.folder, part.where, files)

    def notes(self, evaluated: Part) -> dict[str, str]:
        """What people should know of the parts that have been read, of which this one is evaluated."""
        notes = {"evaluation": evaluated.where}
        unread = [f"split {name}" for name, part in sorted(self.listed.items()) if part.where != evaluated.where]
        if self.folders:
            read = {self.folders.get("train"), evaluated.folder}
            unread = [name for name in folders_in(self.path) if self.path / name not in read]
        unread = [name for name in unread if name != "split train"]
        if unread:
            notes["evaluation"] += f"; {shortened(unread)} {'is' if len(unread) == 1 else 'are'} not read"
        if skipped := str(self.skipped):
            notes["skipped"] = skipped
        if absent := sorted(name for name in self.excluded if name[0] == "/" or not (self.root / name).exists()):
            notes["exclude list"] = f"names {len(absent):,} that are no files inside {self.root}: {shortened(absent)}"
        return notes


def draw(seed: int, name: str) -> bytes:
    """A number in place of a name, to sort by: it depends on nothing else."""
    return hashlib.blake2b(f"{seed}/".encode() + os.fsencode(name), digest_size=8).digest()


def part_folders(path: Path) -> dict[str, Path]:
    """Part -> its folder, for each that there is. Raises ValueError where two folders are the same part."""
    found: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        for part, names in PARTS.items():
            if entry.name.lower() in names and entry.is_dir():
                if part in found:
                    raise ValueError(
                        f"{path} holds both {found[part].name} and {entry.name}, which are the same part of the data; "
                        "keep one of them, or join them"
                    )
                found[part] = entry
    return found


def class_folders(folder: Path) -> tuple[str, ...]:
    """The classes: sorted names of the folders inside, without hidden ones. Raises ImageError for a dangling link."""
    refuse_dangling(path for path in sorted(folder.iterdir()) if not is_hidden(path.name))
    names = folders_in(folder)
    if not names:
        raise ValueError(f"{folder} has no class folders; put its images as {folder}/CLASS/IMAGE")
    return names


def folders_in(path: Path) -> tuple[str, ...]:
    """Sorted names of the folders inside, without hidden ones."""
    return tuple(sorted(each.name for each in path.iterdir() if each.is_dir() and not is_hidden(each.name)))


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
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    if not {"path", "label"} <= set(columns):
        raise ValueError(
            f"{path} has the columns {', '.join(columns)[:80] or 'none'}; it needs path and label, and may have split, "
            "separated by commas"
        )

    parts_of_name = {name: part for part, names in PARTS.items() for name in names}
    parts: dict[str, Part] = {}
    seen: dict[str, int] = {}
    for row in rows:
        line, name, label = rows.line_num, row["path"], (row["label"] or "").strip()
        split = (row.get("split") or "").strip().lower()
        part = parts_of_name.get(split, "") if "split" in columns else WHOLE
        if not name or not label:
            raise ValueError(f"{path}, line {line} has no {'path' if not name else 'label'}; fill it in, or remove it")
        if "split" in columns and not part:
            raise ValueError(f"{path}, line {line} has the split {split!r}; choose one of {', '.join(parts_of_name)}")
        if name in seen:
            raise ValueError(f"{path}, lines {seen[name]} and {line} both name {name}; remove one of them")
        if not (path.parent / name).is_file():
            remedy = "write / between folders" if "\\" in name else "correct the path"
            raise ValueError(f"{path}, line {line} names {path.parent / name}, which is not a file; {remedy}")

        seen[name] = line
        where = f"{path}, split {part}" if part else str(path)
        parts.setdefault(part, Part(path.parent, where, {})).files.setdefault(label, []).append(name)
    if not parts:
        raise ValueError(f"{path} lists no images; give each a line: path,label")
    return parts


def read_exclude(path: str) -> frozenset[str]:
    """The images to leave out, from a file that `data check --write-exclude` wrote: a path a line, # for comments."""
    if not path:
        return frozenset()
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct --data.exclude") from error
    return frozenset(line.removeprefix("./") for line in text.split("\n") if line and not line.startswith("#"))
