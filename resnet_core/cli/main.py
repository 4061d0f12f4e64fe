"""The command line: `resnet-core` and `python -m resnet_core`."""

from __future__ import annotations

import difflib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import docstring_parser
import tyro

from resnet_core.cli.comparison import Compare, Exercise, Grade
from resnet_core.cli.data import DataCheck, DataResize
from resnet_core.cli.errors import as_exit_status
from resnet_core.cli.images import Embed, Explain, Predict
from resnet_core.cli.inference import Evaluate, Export, Quantize
from resnet_core.cli.networks import Describe, Models
from resnet_core.cli.training import Plot, Recipes, Show, Train, WriteReport
from resnet_core.cli.weights import Convert, Inspect
from resnet_core.distributed.launcher import exit_rank
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.distributed.signals import INTERRUPTED, NOTHING_TO_SAVE, STOPPED
from resnet_core.foundation.errors import printable
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.foundation.version import __version__
from resnet_core.recipes import RECIPES, Recipe, get_recipe, overlay
from resnet_core.recipes.recipe import scaling_advice

COMMANDS: dict[str, type] = {
    "models": Models,
    "describe": Describe,
    "recipes": Recipes,
    "show": Show,
    "train": Train,
    "evaluate": Evaluate,
    "plot": Plot,
    "report": WriteReport,
    "data check": DataCheck,
    "data resize": DataResize,
    "compare": Compare,
    "exercise": Exercise,
    "grade": Grade,
    "inspect": Inspect,
    "predict": Predict,
    "embed": Embed,
    "explain": Explain,
    "convert": Convert,
    "quantize": Quantize,
    "export": Export,
}


TRAIN_USAGE = (
    "resnet-core train RECIPE | DIR [--out DIR] [--processes N] [--epochs N] [--lr X] [--batch N] "
    "[--config FILE] [--dry-run] [--section.field VALUE ...]"
)
SHORT_NAMES = {"--epochs": "--train.epochs", "--lr": "--optimizer.lr", "--batch": "--data.global-batch"}
# An option that other programs have, or the section of settings in place of its name -> ours.
WRITTEN_ELSEWHERE = {
    "--batch-size": ["--batch"],
    "--learning-rate": ["--lr"],
    "--gpus": ["--processes"],
    "--nproc-per-node": ["--processes"],
    "--wd": ["--optimizer.weight-decay"],
    **{f"--{section}": [f"--{section}.name"] for section in ("model", "optimizer", "schedule", "loss")},
}
OWN_IMAGES = "finetune"  # the recipe of `train DIR`


@as_exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    # What the program says of itself. `data` is the first word of several commands.
    if words[0:1] == ["help"]:
        words = [*words[1:], "--help"]
    group = [name for name in COMMANDS if words and name.startswith(f"{words[0]} ")]
    if not words or words[0] in ("-h", "--help") or (group and words[1:] in ([], ["-h"], ["--help"])):
        print(f"usage: resnet-core {words[0] + ' ' if group else ''}COMMAND ...\n")
        for name in group or COMMANDS:
            print(f"  {name:<13}{(COMMANDS[name].__doc__ or '').splitlines()[0]}")
        print("\n`resnet-core COMMAND --help` explains a command.")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0

    # A command.
    if words[0] == "exercises":  # as `models` and `recipes`, which list what there is
        words[0] = "exercise"
    size = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, rest = " ".join(words[:size]), words[size:]
    if name not in COMMANDS:
        typed = " ".join(words[:2]) if group else name
        known = group or [*COMMANDS, "--version", "--help"]
        raise ValueError(f"unknown command {typed!r}; {did_you_mean(typed, known)}")
    if name == "train" and rest in (["-h"], ["--help"]):
        print(f"usage: {TRAIN_USAGE}\n\n{Train.__doc__}\n")
        Recipes()()
        print("\n`resnet-core train RECIPE --help` explains all options, with that recipe's values.")
        return 0
    call: Callable[[], int | None]
    call = parse_train(rest) if name == "train" else parse(COMMANDS[name], rest, prog=f"resnet-core {name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"resnet_core\.")
        warnings.showwarning = show_warning
        return call() or 0


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In one line, without the place in the source that Python adds."""
    print(f"resnet-core: {printable(str(message))}", file=sys.stderr)


def run_program() -> NoReturn:
    """The program `resnet-core`: exits with the status of `main`, or that of an interruption."""
    training = sys.argv[1:2] == ["train"]
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what a terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    # SIGTERM raises, so that files that are half written are removed.
    handler = signal.default_int_handler if training else lambda number, frame: sys.exit(128 + number)
    signal.signal(signal.SIGTERM, handler)
    try:
        status = main()
    except KeyboardInterrupt:
        status = STOPPED if training else INTERRUPTED
        if is_main_process():
            print(f"resnet-core: {NOTHING_TO_SAVE if training else 'interrupted'}", file=sys.stderr)

    if training or "RANK" in os.environ:
        exit_rank(status)
    sys.exit(status)


def parse_train(words: list[str]) -> Train:
    """The command `train` from its words. The recipe comes first: its values are the defaults of the other options."""
    if not words or words[0].startswith("-"):
        raise ValueError(
            "train needs a recipe or a folder of images first; `resnet-core recipes` lists the recipes; usage: "
            f"{TRAIN_USAGE}"
        )
    name, options = words[0], in_full(words[1:])
    recipe = recipe_of(name)
    file = last_value_of("--config", options)
    defaults = Train(overlay(recipe, file) if file else recipe, out=Path("runs") / Path(name).resolve().name)
    try:
        train = parse(Train, options, prog=f"resnet-core train {name}", default=defaults)
    except ValueError as error:
        raise ValueError(with_flags(str(error), words)) from None
    chosen = last_value_of("--optimizer.lr", options)
    advice = scaling_advice(recipe, train.recipe) if chosen is None else None
    return replace(train, advice=advice and with_flags(advice, words))


def recipe_of(name: str) -> Recipe:
    """The recipe of that name or, for a folder of images or a CSV list, the one that trains on your own images."""
    path = Path(name)
    if name in RECIPES:
        return get_recipe(name)
    if not path.exists() and ("/" in name or path.suffix):
        raise ValueError(f"{name} does not exist; name a recipe, a folder of images or a CSV list")
    if not path.exists():
        folders = [each.name for each in Path().iterdir() if each.is_dir()]
        raise ValueError(f"{name!r} is neither a recipe nor a folder here; {did_you_mean(name, [*RECIPES, *folders])}")
    if (path / "recipe.toml").is_file():
        raise ValueError(
            f"{name} is a run's folder; continue it with `resnet-core train RECIPE --out {name}`, or start another run "
            f"from its weights with --model.weights {name}"
        )
    recipe = RECIPES[OWN_IMAGES]
    return replace(recipe, data=replace(recipe.data, path=name))


def in_full(options: Sequence[str]) -> list[str]:
    """The options with their full names, and `--model.weights none` as the empty value that it stands for."""
    full: list[str] = []
    for option in options:
        name, equals, value = option.partition("=")
        name = SHORT_NAMES.get(name, name)
        if name == "--model.weights" and value == "none":
            value = ""
        full.append("" if option == "none" and full[-1:] == ["--model.weights"] else name + equals + value)
    return full


def with_flags(message: str, words: Sequence[str]) -> str:
    """The message with each setting, such as `optimizer.lr`, as the flag that sets it: a short name if it was typed."""
    typed = {word.partition("=")[0] for word in words}
    short_names = {full: short for short, full in SHORT_NAMES.items() if short in typed}
    for section, settings in asdict(get_recipe("digits")).items():
        for setting in settings if isinstance(settings, dict) else ():
            flag = f"--{section}.{setting.replace('_', '-')}"
            message = re.sub(rf"(?<![\w.-]){section}\.{setting}\b", short_names.get(flag, flag), message)
    return message


def parse(command: type, words: Sequence[str], *, prog: str, **options: Any) -> Any:
    """The command with its options. Raises ValueError, in one line, for a mistake in them; rank 0 prints their help."""
    errors = io.StringIO()
    try:
        with (
            redirect_stderr(errors),
            nullcontext() if is_main_process() else redirect_stdout(io.StringIO()),
            patch("docstring_parser.parse_from_object", docstrings_with_flags),
            patch.object(sys.stdout, "write", partial(without_empty_defaults, sys.stdout.write)),
        ):
            return tyro.cli(command, args=words, prog=prog, config=(tyro.conf.FlagCreatePairsOff,), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        mistake = in_one_line(errors.getvalue(), of_training=command is Train)
        raise ValueError(
            f"{mistake}{'' if mistake.endswith('?') else ';'} `{prog} --help` explains all options"
        ) from None


def docstrings_with_flags(command: Any, read: Callable[[Any], Any] = docstring_parser.parse_from_object) -> Any:
    """What the help says of each option: settings as flags, and without the line breaks of the source."""
    docstring = read(command)
    for option in docstring.params:
        option.description = option.description and with_flags(" ".join(option.description.split()), ())
    return docstring


def without_empty_defaults(write: Callable[[str], int], text: str) -> int:
    """Writes help in which options that are empty by default show no default; blanks keep its frame straight."""
    return write(re.sub(r"\(default: (?:'')?\)", lambda shown: " " * len(shown[0]), text))


# What Python and tyro say of a wrong value -> what a user can use.
IN_PLAIN_WORDS = {
    r"^Error parsing (\S+): could not convert string to float: (.*)$": r"\1 must be a number, got \2",
    r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$": r"\1 must be a whole number, got \2",
    r"^Error parsing (\S+): no type matching .*INT could be instantiated from \['(.*?)'\].*": (
        r"\1 must be a whole number, got '\2'"
    ),
    r"^Error parsing (?!--)\S+: ": "",  # a sentence of this package follows
    r"^Missing value for argument '(\S+)'. Expected 1 values": r"\1 needs a value",
    r"^Unrecognized options: (?!-)(\S+).*": r"'\1' is one argument too many",
}


def in_one_line(framed: str, *, of_training: bool = False) -> str:
    """The mistake and the nearest options, from the frame that tyro prints: title, mistake, suggestions, help."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", framed)  # colours, sides and corners
    blocks = [block.strip() for block in re.split(r"[─-]{3,}", text)]
    if len(blocks) < 2:  # a frame of another form
        return " ".join(framed.split())

    mistake = re.sub(r"\[([A-Z]+)\]", r"\1", " ".join(blocks[1].split()).removesuffix("."))
    for python, plain in IN_PLAIN_WORDS.items():
        mistake = re.sub(python, plain, mistake)
    if missing := re.fullmatch(r"Missing from resnet-core ([\w ]+): (.*)\(required\)", mistake):
        command, arguments = missing.groups()
        mistake = f"{command} needs {' and '.join(part.split()[0] for part in arguments.split('(required)'))}"
    suggestions = "".join(block for block in blocks[2:] if block.startswith("Perhaps you meant"))
    nearest = re.findall(r"^ *(--[\w.-]+)", suggestions, flags=re.MULTILINE)
    unknown = re.match(r"Unrecognized options: (--[\w.-]+)", mistake)
    if unknown and of_training:  # tyro knows neither the short names nor other programs' names
        typed = unknown[1].replace("_", "-")
        nearest[:0] = WRITTEN_ELSEWHERE.get(typed, difflib.get_close_matches(typed, SHORT_NAMES, n=1, cutoff=0.7))
    return f"{mistake}; did you mean {' or '.join(nearest[:3])}?" if nearest else mistake


def last_value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option, written `--name VALUE` or `--name=VALUE`; if there are several, the last."""
    value = None
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            value = words[number + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value
