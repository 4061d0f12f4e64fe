"""From what was typed behind `train` to the command: a recipe or a folder, short names, settings as flags."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_core.cli.parse import parse
from resnet_core.cli.training import SHORT_NAMES, Recipes, Train, with_flags
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.recipes import RECIPES, Recipe, get_recipe, overlay
from resnet_core.recipes.recipe import scaling_advice

TRAIN_USAGE = (
    "resnet-core train RECIPE | DIR [--out DIR] [--processes N] [--epochs N] [--lr X] [--batch N] "
    "[--config FILE] [--dry-run] [--section.field VALUE ...]"
)
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


def print_usage() -> None:
    """Prints what `train` is, and the recipes."""
    print(f"usage: {TRAIN_USAGE}\n\n{Train.__doc__}\n")
    Recipes()()
    print("\n`resnet-core train RECIPE --help` explains all options, with that recipe's values.")


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
        train = parse(
            Train,
            options,
            prog=f"resnet-core train {name}",
            default=defaults,
            described=with_flags,
            also_known=written_elsewhere,
        )
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
        folders = [each.name for each in Path().glob("[!.]*") if each.is_dir()]
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


def written_elsewhere(option: str) -> list[str]:
    """Our options for one of other programs, or for a misspelled short name: tyro knows neither."""
    return WRITTEN_ELSEWHERE.get(option, difflib.get_close_matches(option, SHORT_NAMES, n=1, cutoff=0.7))


def last_value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option, written `--name VALUE` or `--name=VALUE`; if there are several, the last."""
    value = None
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            value = words[number + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value
