"""Commands that go over images with a trained network: predict, embed and explain."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from resnet_core.cli.errors import SOME_FAILED, print_error
from resnet_core.cli.options import check_at_least, unset
from resnet_core.cli.weights import FromFile
from resnet_core.data.images import ImageError, find_images
from resnet_core.data.transforms import ImageTransform
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.foundation.atomic import LONGEST_NAME, replace_file
from resnet_core.foundation.errors import printable
from resnet_core.inference.explain import as_png, captum_attr, explain
from resnet_core.inference.files import with_bar
from resnet_core.inference.networks import load_network, only_predicts
from resnet_core.inference.predict import as_npy, embed_files, predict_files
from resnet_core.train import join_world
from resnet_core.weights.pretrained import locate

Results = list[tuple[Path, Any]]  # each image, and its result or its ImageError


@dataclass(frozen=True, kw_only=True)
class OverImages(FromFile):
    """What these commands have in common."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """A run's folder, a weights file or folder, or published weights such as resnet50 or resnet50:IMAGENET1K_V1."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="(required)")
    ]
    """Image files, or folders that contain images at any depth."""

    def __post_init__(self) -> None:
        if not self.images:
            command = type(self).__name__.lower()
            raise ValueError(f"{command} needs an image or a folder of images after the weights")

    def files(self) -> list[tuple[Path, ImageError | None]]:
        """The image files; with an error, what was named and cannot be read."""
        locate(self.weights)  # before the images, and before a download
        if not any(image.exists() for image in self.images):
            raise FileNotFoundError(f"{self.images[0]} does not exist; name an image or a folder of images")

        files: list[tuple[Path, ImageError | None]] = []
        for argument in self.images:
            try:
                files += [(file, None) for file in find_images(argument)]
            except ImageError as error:
                files.append((argument, error))
        return files

    def network(self, **options: bool) -> tuple[nn.Module, ImageTransform, Sequence[str] | None]:
        """The network, how to prepare an image for it, and its classes' names where they are known."""
        options["progress"] = is_main_process()
        model, info = load_network(self.weights, **self.file.arguments(), **options)
        if info.transform is None:
            remedy = (
                "prepare images in Python, and call the network that `resnet_core.weights.load_model` returns"
                if "in_channels" in info.config
                else f"`resnet-core convert {shlex.quote(self.weights)} NAME.safetensors --resize-size PIXELS "
                "--crop-size PIXELS` writes a file that does"
            )
            raise ValueError(f"{self.weights} does not record how to prepare an image for {info.model}; {remedy}")
        if is_main_process():
            print(f"{info.model}, {info.origin}", file=sys.stderr)
        return model, info.transform, info.class_names


@dataclass(frozen=True, kw_only=True)
class InBatches(OverImages):
    """Commands that compute many images at once."""

    batch: int = 32
    """Number of images that are computed at once."""
    workers: int = 2
    """Number of processes that read images; 0 reads them in the main process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, batch=self.batch)
        check_at_least(0, workers=self.workers)

    def results(self, over_files: Callable[..., list[Any]]) -> Results:
        """`over_files(model, transform, files, class_names, ...)` over all image files, by all processes."""
        files = self.files()
        to_read = [file for file, error in files if error is None]
        with join_world("cpu" if only_predicts(self.weights) else "auto") as world:
            options = {"batch": self.batch, "workers": self.workers, "world": world}
            model, transform, class_names = self.network()
            results = iter(over_files(model, transform, to_read, class_names, **options))
        return [(file, error or next(results)) for file, error in files]


@dataclass(frozen=True, kw_only=True)
class Predict(InBatches):
    """Classify images: print the most likely classes and their probabilities, or write them to a CSV file.

    Example: `resnet-core predict resnet50:IMAGENET1K_V2 photo.jpg --top 3`
    """

    top: int = 5
    """How many classes to give for each image."""
    out: Annotated[Path | None, unset("FILE.csv")] = None
    """The CSV file to write: a row for each image, with its classes and probabilities, or with its error."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, top=self.top)
        if self.out:
            check_new_file(self.out, ".csv")

    def __call__(self) -> int:
        results = self.results(partial(predict_files, top=self.top))
        if not is_main_process():
            return 0

        if self.out:
            write_csv(self.out, prediction_rows(results))
        if self.json:
            print(json.dumps([record(image, result) for image, result in results], indent=2))
        elif not self.out:
            for image, guesses in readable(results):
                lines = [f"  {guess.probability:7.2%}  {guess.name or guess.index}" for guess in guesses]
                print(*map(printable, (str(image), *lines)), sep="\n")
        return ended(results, self.out)


@dataclass(frozen=True, kw_only=True)
class Embed(InBatches):
    """Write the features of images, the input of the network's classifier: a row of numbers for each image.

    Example: `resnet-core embed resnet50:IMAGENET1K_V2 photos --out features.npy`
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The NumPy file to write, float32. The names of the images, in the order of its rows, are written beside it, to a
    file that ends in .csv."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_new_file(self.out, ".npy")
        check_new_file(self.out.with_suffix(".csv"), ".csv")

    def network(self, **options: bool) -> tuple[nn.Module, ImageTransform, Sequence[str] | None]:
        """The same, also of a body, since features need no head."""
        return super().network(new_head=True)

    def __call__(self) -> int:
        results = self.results(
            lambda model, transform, files, _, **options: embed_files(model, transform, files, **options)
        )
        if not is_main_process():
            return 0

        if rows := readable(results):
            write_csv(self.out.with_suffix(".csv"), [["image"], *([image] for image, _ in rows)])
            replace_file(self.out, as_npy([features for _, features in rows]))
        return ended(results, self.out if rows else None)


@dataclass(frozen=True, kw_only=True)
class Explain(OverImages):
    """Draw where in images the network sees a class: Grad-CAM heat maps, a picture for each image.

    Example: `resnet-core explain resnet50:IMAGENET1K_V2 photo.jpg --out heatmaps`
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A new folder for the pictures."""
    class_: Annotated[str | None, tyro.conf.arg(name="class", metavar="NAME", help_behavior_hint="")] = None
    """Name or number of the class to look for. By default each image's most likely one."""

    def __call__(self) -> int:
        captum_attr()  # before any work
        if only_predicts(self.weights):
            raise ValueError(
                f"{self.weights} only predicts, and has no gradients; explain the weights that it was made of"
            )
        files = self.files()
        if self.out.exists():
            raise FileExistsError(f"{self.out} exists; remove it or choose another folder")
        model, transform, class_names = self.network()

        results: Results = []
        for number, (file, error) in enumerate(with_bar(files, len(files)), 1):
            try:
                if error:
                    raise error
                explanation = explain(model, transform, file, class_names, self.class_)
            except ImageError as damage:
                results.append((file, damage))
                continue
            self.out.mkdir(parents=True, exist_ok=True)
            name = f"{number:0{len(str(len(files)))}}-{file.name[:LONGEST_NAME]}.png"
            replace_file(self.out / name, as_png(explanation))
            results.append((file, explanation))
        return ended(results, self.out)


def readable(results: Results) -> Results:
    """Without the images that could not be read."""
    return [(image, result) for image, result in results if not isinstance(result, ImageError)]


def ended(results: Results, out: Path | None) -> int:
    """Prints what was written and which images could not be read. Returns the exit status."""
    done = readable(results)
    if out and out.exists():
        of_all = f" of {len(results):,}" if len(done) < len(results) else ""
        print(f"{out}: {len(done):,}{of_all} {'image' if len(results) == 1 else 'images'}")
    for _, result in results:
        if isinstance(result, ImageError):
            print_error(result)
    return SOME_FAILED if len(done) < len(results) else 0


def record(image: Path, result: Any) -> dict[str, Any]:
    """An image's predictions as JSON."""
    if isinstance(result, ImageError):
        return {"image": str(image), "error": str(result)}
    return {"image": str(image), "classes": [asdict(guess) for guess in result]}


def prediction_rows(results: Results) -> list[list[Any]]:
    """A header, and for each image its classes with their probabilities, or the error."""
    most = max((len(guesses) for _, guesses in readable(results)), default=1)
    columns = [f"{name}{number}" for number in ("", *range(2, most + 1)) for name in ("class", "probability")]

    rows: list[list[Any]] = [["image", *columns, "error"]]
    for image, result in results:
        if isinstance(result, ImageError):
            rows.append([image, *[""] * len(columns), result])
        else:
            cells = [cell for guess in result for cell in (guess.name or guess.index, f"{guess.probability:.6g}")]
            rows.append([image, *cells, ""])
    return rows


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    replace_file(path, text.getvalue().encode(errors="surrogateescape"))


def check_new_file(path: Path, ending: str) -> None:
    """Raises ValueError for a file with another ending, one that exists, and one whose folder does not."""
    if path.suffix.lower() != ending:
        raise ValueError(f"{path} must end in {ending}; name it {path.stem}{ending}")
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it, or choose another place for {path.name}")
