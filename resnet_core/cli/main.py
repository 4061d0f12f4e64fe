"""The command line: `resnet-core` and `python -m resnet_core`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import tyro

from resnet_core.cli.comparison import Compare, Exercise, Grade
from resnet_core.cli.errors import as_exit_status
from resnet_core.cli.inference import Evaluate, Export, Predict
from resnet_core.cli.networks import Describe, Models
from resnet_core.cli.training import Plot, Recipes, Show, Train
from resnet_core.cli.weights import Convert
from resnet_core.distributed.launcher import exit_rank
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.distributed.signals import INTERRUPTED, NOTHING_TO_SAVE, STOPPED
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.foundation.version import __version__
from resnet_core.recipes import RECIPES, get_recipe, overlay
from resnet_core.recipes.recipe import scaling_advice

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


@as_exit_status
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
        print(__version__)
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
    """The program `resnet-core`: exits with the status of `main`, or that of an interruption."""
    training = sys.argv[1:2] == ["train"]
    handler = signal.default_int_handler if training else lambda number, frame: sys.exit(128 + number)
    signal.signal(signal.SIGTERM, handler)  # nothing half written stays
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
