"""`python -m parity.benchmarks.decoders DIR`: the accuracy of training with each decoder, on CIFAR-10 as JPEG files.

DIR holds CIFAR-10 in class folders, `train` and `test`. Counts the files that the decoders decode differently. Some
images are then enlarged to 64 x 64 pixels and trained on at 16, so that simplejpeg decodes at reduced sizes: nearly
every view comes from a file that is decoded at half or a quarter of its size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from parity.benchmarks.scaling import table
from resnet_core.data import dataset_of
from resnet_core.data.decoders import DECODERS, with_simplejpeg
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.recipes.recipe import Recipe

LARGE, SIZE, ORIGINAL = 64, 16, 32
OF_A_CLASS = {"train": 600, "test": 500}


def enlarged(source: Path, folder: Path) -> None:
    """The first images of each class, enlarged, as JPEG files of quality 90."""
    for part, count in OF_A_CLASS.items():
        for classes in sorted((source / part).iterdir()):
            (folder / part / classes.name).mkdir(parents=True)
            for path in sorted(classes.iterdir())[:count]:
                with Image.open(path) as image:
                    large = image.resize((LARGE, LARGE), Image.Resampling.BICUBIC)
                large.save(folder / part / classes.name / path.name, quality=90)


def recipe_of(folder: Path, decoder: str, epochs: int, seed: int) -> Recipe:
    recipe = RECIPES["cifar10_fast"]
    data = replace(
        recipe.data,
        name="image_folder",
        path=str(folder),
        decoder=decoder,
        crop_padding=0,
        random_resized_crop=0.25,
        train_size=SIZE,
        train_size_start=0,
        train_size_epochs=0,
        eval_resize=SIZE,
        eval_size=SIZE,
        workers=0,
    )
    schedule = replace(recipe.schedule, warmup_epochs=epochs / 5)
    run = replace(recipe.run, eval_every_epochs=epochs)
    return replace(recipe, data=data, schedule=schedule, train=replace(recipe.train, epochs=epochs), run=run, seed=seed)


def unequal_files(folder: Path) -> str:
    """How many of the training files the decoders decode differently."""
    files = dataset_of(recipe_of(folder, "pillow", 1, 0).data).train
    encoded = with_simplejpeg(files)
    different = sum(
        not torch.equal(encoded.take([index])[0].region(0, 0, ORIGINAL, ORIGINAL, ORIGINAL), files[index][0])
        for index in range(len(files))
    )
    return f"{different:,} of {len(files):,}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.decoders", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings with each decoder (%(default)s)")
    given = parser.parse_args(arguments)

    print(
        f"files of {ORIGINAL}x{ORIGINAL} that the decoders decode differently: {unequal_files(given.folder)}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place:
        enlarged(given.folder, Path(place))
        rows = []
        for decoder in DECODERS:
            scores = []
            for seed in range(given.seeds):
                scores.append(make_trainer(recipe_of(Path(place), decoder, given.epochs, seed)).fit()["top1"])
                print(f"{decoder}, seed {seed}: {scores[-1]:.2%}", flush=True)
            rows.append([decoder, *(f"{score:.2%}" for score in scores), f"{statistics.mean(scores):.2%}"])
    print("\n" + table(["decoder", *(f"seed {seed}" for seed in range(given.seeds)), "mean"], rows))


if __name__ == "__main__":
    main()
