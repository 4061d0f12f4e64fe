"""The command line: `resnet-core` and `python -m resnet_core`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import wraps
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import tyro

import resnet_core
from resnet_core.compare import ALL_RUNGS, DEFAULT_RUNGS, compare, in_short
from resnet_core.curves import plot
from resnet_core.data import DataConfig
from resnet_core.data.datasets import IN_FOLDERS
from resnet_core.data.images import ImageError, find_images
from resnet_core.data.transforms import ImageTransform
from resnet_core.deploy import export
from resnet_core.deploy.export import Format, find_exporter
from resnet_core.describe import describe as describe_model
from resnet_core.evaluation import evaluate_weights
from resnet_core.exercises import EXERCISES, LEGEND, grade, handout
from resnet_core.models import list_models
from resnet_core.plan import make_plan
from resnet_core.predict import predict
from resnet_core.pretrained import load_model
from resnet_core.recipes import (
    RECIPES,
    SOURCES,
    Recipe,
    get_recipe,
    overlay,
    prepare,
    read_recipe,
    read_result,
    scaling_advice,
    to_toml,
)
from resnet_core.recipes import run as run_recipe
from resnet_core.specs import find_network
from resnet_core.suggestions import did_you_mean
from resnet_core.train import NonFiniteLossError, PeerError, TrainConfig, join_world, launch
from resnet_core.train.distributed import exit_rank, is_main_process, may_tell
from resnet_core.weights.convert import convert

# Exit statuses; 0 is success.
TRAINING_FAILED, SOME_FAILED, DIFFERENT, USER_ERROR, INTERRUPTED = 1, 1, 1, 2, 130


def reported(function: Callable[..., int]) -> Callable[..., int]:
    """`function`, with the errors that users can mend told in one line and turned into exit statuses."""

    @wraps(function)
    def wrapper(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except (NonFiniteLossError, PeerError) as error:
            return tell(error, str(error), TRAINING_FAILED)
        except BrokenPipeError:  # `resnet-core describe resnet50 | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (ValueError, OSError) as error:
            return tell(error, str(error), USER_ERROR)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or "Python has none left").splitlines()[0]
            return tell(error, f"out of memory ({reason}); {LESS_MEMORY}", TRAINING_FAILED)

    return wrapper


LESS_MEMORY = (
    "use smaller images or batches; in training a smaller --data.global-batch, more processes, --train.precision bf16, "
    "or --train.accumulation N, which keeps the global batch but computes BatchNorm over each of its N parts"
)


def is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's or the CPU's; the last has no type of its own in torch."""
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory")
    )


def tell(error: Exception, message: str, status: int) -> int:
    """Says it on standard error, where `may_tell` lets this process; the exit status."""
    if may_tell(error):
        print(f"resnet-core: {' '.join([message, *getattr(error, '__notes__', ())])}", file=sys.stderr)
    return status


@dataclass(frozen=True)
class Models:
    """List the models."""

    pattern: tyro.conf.Positional[str] = "*"
    """Shell pattern of names, such as "resnet*"."""

    def __call__(self) -> None:
        names = list_models(self.pattern)
        if not names:
            raise ValueError(f"no model matches {self.pattern!r}; {did_you_mean(self.pattern, list_models())}")
        for name in names:
            print(f"{name:<18}{describe_model(name, image_size=32).parameters:>13,} parameters")


@dataclass(frozen=True)
class Describe:
    """Show a model as the paper's Table 1: shapes, parameters, multiply-adds, receptive fields."""

    model: tyro.conf.Positional[str]
    """A name of `resnet-core models`."""
    image_size: int = 224
    """Height and width in pixels."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        description = describe_model(self.model, self.image_size)
        print(description.to_json() if self.json else description)


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""

    def __call__(self) -> None:
        for name, recipe in RECIPES.items():
            what = f"{recipe.model.name} on {recipe.data.name}, {recipe.train.epochs} epochs"
            print(f"{name:<25}{what}\n{'':<25}{SOURCES[name]}")


@dataclass(frozen=True)
class Show:
    """Print a recipe as TOML."""

    recipe: tyro.conf.Positional[str]
    """A name of `resnet-core recipes`."""

    def __call__(self) -> None:
        print(to_toml(get_recipe(self.recipe)), end="")


@dataclass(frozen=True)
class Train:
    """Train a recipe, or continue its run where it stopped."""

    # True and False are spelled out: a switch could only turn on what a recipe has off, or the other way round.
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    out: Path
    """Folder of the run."""
    processes: int = 1
    """Processes on this machine that train together."""
    config: Path | None = None
    """A TOML file with the values that differ from the recipe's, as `resnet-core show RECIPE` prints them."""
    dry_run: bool = False
    """Print what would run: model, steps, learning rates, memory."""
    advice: tyro.conf.Suppress[str | None] = None
    """What to say before it begins."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--processes must be at least 1, got {self.processes}")

    def __call__(self) -> int:
        under_torchrun = "RANK" in os.environ
        if under_torchrun and self.processes > 1:
            raise ValueError("--processes starts processes; under torchrun leave it to --nproc-per-node")
        processes = int(os.environ["WORLD_SIZE"]) if under_torchrun else self.processes
        plan = make_plan(self.recipe, processes) if self.dry_run else None
        if plan is None and not under_torchrun:
            prepare(self.recipe, self.out, processes)
        if self.advice and is_main_process():
            print(f"resnet-core: {self.advice}", file=sys.stderr)
        if plan:
            if is_main_process():
                print(plan)
            return 0
        if under_torchrun:
            return train_here(self.recipe, self.out)
        if self.processes == 1 or read_result(self.out):
            return train_here(self.recipe, self.out)
        return launch(train_here, (self.recipe, self.out), self.processes)


@reported
def train_here(recipe: Recipe, out: Path) -> int:
    """Trains as one process of the world; rank 0 says how it ended."""
    was_finished = read_result(out) is not None
    result = run_recipe(recipe, out)
    if is_main_process():
        print(f"{out} {'was finished before' if was_finished else 'is finished'}: {describe_scores(result)}")
        steps, seconds, rate = result["steps"], result["seconds"], result["images_per_second"]
        print(f"{steps:,} steps in {seconds:.1f} s, {rate:,.0f} images/s")
    return 0


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a finished run again on its test data, or any weights on data of yours."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    data: str = ""
    """Folder to evaluate on, of images as DIR/val/CLASS/IMAGE, DIR/test/CLASS/IMAGE or DIR/CLASS/IMAGE; a run's own
    data when left out."""
    dataset: str = ""
    """What lies in that folder: image_folder when left out, cifar10, fashion_mnist; digits need no folder."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        is_run = (Path(self.weights) / "recipe.toml").is_file()
        recipe = read_recipe(self.weights) if is_run else None
        data = self._data(recipe)
        on_cpu = recipe is not None and recipe.run.device == "cpu"
        with join_world("cpu" if on_cpu else "auto") as world:
            model, info = load_model(
                self.weights, model=self.model, allow_pickle=self.allow_pickle, progress=world.is_main
            )
            if world.is_main:
                print(f"{info.model}, {info.origin}", file=sys.stderr)
            scores = evaluate_weights(model, info, data, recipe.train if recipe else TrainConfig(), world)
        if is_main_process():
            print(json.dumps(scores) if self.json else describe_scores(scores))

    def _data(self, recipe: Recipe | None) -> DataConfig:
        if not self.data and not self.dataset:
            if recipe is None:
                raise ValueError(
                    f"{self.weights} is not a run's folder: it has no recipe.toml; say on which data to evaluate "
                    "other weights, with --data DIR"
                )
            return recipe.data
        name = self.dataset or "image_folder"
        if not self.data and name in IN_FOLDERS:
            raise ValueError(f"--dataset {name} is read from a folder; say which with --data DIR")
        if recipe is None:
            return DataConfig(name=name, path=self.data, global_batch=1, eval_batch=64, workers=2)
        return replace(recipe.data, name=name, path=self.data)


@dataclass(frozen=True)
class Plot:
    """Draw loss, accuracy and learning rate of a run, or of several in one picture."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Folders of runs."""
    out: Path | None = None
    """The .png, .pdf or .svg file to draw; when left out curves.png, in the run's folder or, of several runs, here."""

    def __call__(self) -> None:
        if not self.runs:
            raise ValueError("plot needs the folder of a run, or of several")
        print(plot(self.runs, self.out))


@dataclass(frozen=True)
class Predict:
    """Name what is on images: the likeliest classes with their probabilities."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")]
    """Image files, or folders of them."""
    top: int = 5
    """How many classes of each image."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")

    def __call__(self) -> int:
        if not self.images:
            raise ValueError("predict needs an image or a folder of images after the weights")
        model, info = load_model(self.weights, model=self.model, allow_pickle=self.allow_pickle)
        if info.transform is None:
            raise ValueError(
                f"{self.weights} does not say how to prepare an image for {info.model}; "
                "`resnet-core convert` writes it with --resize-size and --crop-size"
            )
        print(f"{info.model}, {info.origin}", file=sys.stderr)
        records: list[dict[str, Any]] = []
        for argument in self.images:
            try:
                found = find_images(argument)
            except ImageError as error:
                records.append(failed(argument, error))
                continue
            for image in found:
                try:
                    guesses = predict(model, info.transform, image, info.class_names, self.top)
                except ImageError as error:
                    records.append(failed(image, error))
                    continue
                records.append({"image": str(image), "classes": [asdict(guess) for guess in guesses]})
                if not self.json:
                    print(image)
                    for guess in guesses:
                        print(f"  {guess.probability:7.2%}  {guess.name or guess.index}")
        if self.json:
            print(json.dumps(records, indent=2))
        return SOME_FAILED if any("error" in record for record in records) else 0


def failed(image: Path, error: ImageError) -> dict[str, Any]:
    """The record of an image that was not predicted, after telling it."""
    print(f"resnet-core: {error}", file=sys.stderr)
    return {"image": str(image), "error": str(error)}


@dataclass(frozen=True)
class Compare:
    """Compare two networks rung by rung; where they differ, find the first place and the mistake.

    A network is a name of `resnet-core models`, torchvision:NAME, timm:NAME, or your.module:function, which is
    imported and called: it is your own code that runs.
    """

    a: tyro.conf.Positional[str]
    """The network in question."""
    b: tyro.conf.Positional[str]
    """The reference."""
    image_size: int = 64
    """Height and width of the random images in pixels."""
    channels: int = 3
    """Of the random images."""
    batch: int = 2
    """Random images, at least 2."""
    all: bool = False
    """Also torch.compile, torch.export and ONNX."""
    skip: tuple[str, ...] = ()
    """Rungs to leave out, such as "seeded initialisation"."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both run."""
    diagnosis_seconds: float = 60.0
    """How long to look for the mistake; 0: not at all."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.channels, self.batch - 1) < 1:
            raise ValueError("--image-size and --channels must be at least 1, --batch at least 2")

    def __call__(self) -> int:
        sys.path.insert(0, os.getcwd())
        for name in self.skip:
            if name not in ALL_RUNGS:
                raise ValueError(
                    f"--skip {name!r} is no rung; {did_you_mean(name, ALL_RUNGS)}; quote names with spaces"
                )
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch finds no GPU here; leave it out")
        rungs = [name for name in (ALL_RUNGS if self.all else DEFAULT_RUNGS) if name not in self.skip]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, self.channels, self.image_size, self.image_size, generator=generator)
        with redirect_stdout(sys.stderr):  # what their code prints is no part of the result
            a, b = find_network(self.a), find_network(self.b)
            try:
                result = compare(a, b, images.to(self.device), rungs=rungs, diagnosis_seconds=self.diagnosis_seconds)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(str(error)) from error
            except Exception as error:  # whatever their networks raise
                raise ValueError(f"{self.a} and {self.b} cannot be compared: {in_short(error)}") from error
        print(result.to_json() if self.json else result)
        return 0 if result else DIFFERENT


@dataclass(frozen=True)
class Exercise:
    """List the broken ResNets to mend, by number and symptom, the easiest first; or write one of them."""

    number: tyro.conf.Positional[int | None] = None
    """Which to write."""
    out: Path | None = None
    """The file to write: exercise_07.py for number 7 when left out."""

    def __call__(self) -> None:
        if self.number is None:
            if self.out is not None:
                raise ValueError(f"--out {self.out} needs the exercise's number before it")
            print(f"{'':<4}{'block':<12}what is seen")
            for number, exercise in enumerate(EXERCISES.values(), 1):
                block = exercise.blocks[0] if len(exercise.blocks) == 1 else "both"
                print(f"{number:>2}  {block:<12}{exercise.symptom}")
            print("\n".join(LEGEND))
            return
        out = self.out or Path(f"exercise_{self.number:02}.py")
        text = handout(self.number, str(out))
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise ValueError(f"{out} is there already, perhaps mended; choose another file with --out") from error
        print(f"{out}: mend it, then `resnet-core grade {out}`")


@dataclass(frozen=True)
class Grade:
    """Say whether an exercise is mended or, if not, where its networks first differ from ours.

    It runs the file: it is your own code.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The mended exercise, a Python file with ResNet, BasicBlock, Bottleneck and TABLE_1."""
    tell: bool = False
    """Name the mistake; this takes up to a minute for each block."""

    def __call__(self) -> int:
        differences = grade(self.file, tell=self.tell)
        if not differences:
            print(f"{self.file} is mended: its networks compute what ours do, from the same seed with the same weights")
            return 0
        print(f"{self.file} is not mended yet; it first differs at")
        print("\n".join(map(str, differences)))
        return DIFFERENT


@dataclass(frozen=True)
class Convert:
    """Bring another library's weights into a file of ours, after comparing both models' outputs."""

    src: tyro.conf.Positional[Path]
    """File (or transformers folder) that holds the weights."""
    dst: tyro.conf.Positional[Path]
    """The .safetensors file to write."""
    source: str
    """Whose weights they are: timm, transformers, keras, composer or torchvision."""
    model: str | None = None
    """The model, where the shapes alone do not tell."""
    resize_size: int | None = None
    """Of the images in their evaluation, the shorter side's pixels; recorded in the file for `predict`."""
    crop_size: int | None = None
    """Of the images in their evaluation, height and width in pixels."""
    allow_pickle: bool = False
    """Read .pth, .pt and .bin files, with torch's weights_only=True."""

    def __post_init__(self) -> None:
        if (self.resize_size is None) != (self.crop_size is None):
            raise ValueError("--resize-size and --crop-size go together")

    def __call__(self) -> None:
        transform = None
        if self.resize_size is not None and self.crop_size is not None:
            transform = ImageTransform(resize_size=self.resize_size, crop_size=self.crop_size)
        convert(
            self.src,
            self.dst,
            source=self.source,
            model=self.model,
            transform=transform,
            allow_pickle=self.allow_pickle,
            report=print,
        )


@dataclass(frozen=True)
class Export:
    """Write a model for other runtimes, after comparing its outputs there with ours."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """Folder of a run, a file of weights, or published weights: resnet50, resnet50:IMAGENET1K_V1."""
    out: tyro.conf.Positional[Path]
    """The file to write: .onnx, or .pt2 for the others."""
    format: Format = "onnx"
    """onnx (for any runtime), torch-export (for Python) or aoti (compiled for this machine)."""
    image_size: int | None = None
    """Height and width in pixels; those of the weights' evaluation when left out."""
    model: str | None = None
    """The model of a file of weights that does not say it."""
    allow_pickle: bool = False
    """Read .pth and .pt files, with torch's weights_only=True."""

    def __call__(self) -> None:
        find_exporter(self.out, self.format)
        model, info = load_model(self.weights, model=self.model, allow_pickle=self.allow_pickle)
        size = self.image_size
        if size is None:
            size = info.transform.crop_size if info.transform else 224
        channels = info.config.get("in_channels", 3)
        print(export(model, self.out, format=self.format, image_size=size, channels=channels))


def describe_scores(scores: Mapping[str, float]) -> str:
    count = int(scores["count"])
    correct = {label: round(scores[key] * count) for label, key in (("top-1", "top1"), ("top-5", "top5"))}
    return ", ".join(f"{label} {right / count:.2%} ({right} of {count})" for label, right in correct.items())


COMMANDS: dict[str, type] = {
    "models": Models,
    "describe": Describe,
    "recipes": Recipes,
    "show": Show,
    "train": Train,
    "evaluate": Evaluate,
    "plot": Plot,
    "compare": Compare,
    "exercise": Exercise,
    "grade": Grade,
    "predict": Predict,
    "convert": Convert,
    "export": Export,
}

TRAIN_USAGE = "resnet-core train RECIPE [--out DIR] [--processes N] [--section.field VALUE ...] | train RECIPE --help"


@reported
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print("usage: resnet-core COMMAND ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}")
        print("\n`resnet-core COMMAND --help` tells more.")
        return 0
    if words[0] == "--version":
        print(resnet_core.__version__)
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")
    call: Callable[[], int | None]
    if name == "train" and rest in (["-h"], ["--help"]):
        print(f"usage: {TRAIN_USAGE}\n\n{Train.__doc__}\n")
        return Recipes()() or 0
    call = parse_train(rest) if name == "train" else parse(COMMANDS[name], rest, prog=f"resnet-core {name}")
    return call() or 0


def run_program() -> NoReturn:
    """The program `resnet-core`: exits with the status of `main`, or 130 when interrupted."""
    training = sys.argv[1:2] == ["train"]
    if not training:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # nothing half written stays
    try:
        status = main()
    except KeyboardInterrupt:
        status = INTERRUPTED
        if is_main_process():
            hint = "; the same command continues a run from its last checkpoint" if training else ""
            print(f"resnet-core: interrupted{hint}", file=sys.stderr)
    if "RANK" in os.environ:
        exit_rank(status)
    sys.exit(status)


def parse_train(words: list[str]) -> Train:
    """The recipe comes first, since the other options' defaults are its values."""
    if not words or words[0].startswith("-"):
        raise ValueError(f"train needs a recipe first, of {', '.join(RECIPES)}; usage: {TRAIN_USAGE}")
    name = words[0]
    recipe = get_recipe(name)
    if config := option("--config", words):
        recipe = overlay(recipe, config)
    train = parse(Train, words[1:], prog=f"resnet-core train {name}", default=Train(recipe, out=Path("runs") / name))
    return replace(train, advice=scaling_advice(get_recipe(name), train.recipe))


def parse(command: type, words: Sequence[str], **options: Any) -> Any:
    """The command with its options; rank 0 alone prints their help and what is wrong with them."""
    # tyro prints an error of a __post_init__ whatever its console_outputs.
    with nullcontext() if is_main_process() else redirect_stderr(StringIO()):
        return tyro.cli(
            command,
            args=words,
            config=(tyro.conf.FlagCreatePairsOff,),
            console_outputs=is_main_process(),
            **options,
        )


def option(name: str, words: Sequence[str]) -> str | None:
    """The value that follows an option, `--name VALUE` or `--name=VALUE`; the last one counts."""
    found = [value for word, value in pairwise(words) if word == name]
    found += [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return found[-1] if found else None
