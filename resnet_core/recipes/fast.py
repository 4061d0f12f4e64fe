"""The recipe that `train.fast` stands for on this machine: steps of its own network, images and batch are measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch

from resnet_core.data.config import augmentation_of
from resnet_core.data.sampler import batch_share, steps_per_epoch
from resnet_core.recipes.experiment import Experiment, make_trainer
from resnet_core.recipes.recipe import Recipe
from resnet_core.train import RunConfig, TrainConfig, World
from resnet_core.train.fast import CHOSEN, choose_compiled, choose_form, choose_threads, seconds_of, words

SECONDS_A_STEP = 0.7  # of a batch that takes longer, a part is measured
FEW = 8  # images to judge that by
EVALUATION_SHAPES = 2  # full batches, and the last one


def with_choice_of(recipe: Recipe, chosen: Recipe) -> Recipe:
    """The recipe with the settings in place of `train.fast` that another one has."""
    settings = {name: getattr(chosen.train, name) for name in CHOSEN}
    return replace(
        recipe,
        train=replace(recipe.train, fast=False, **settings),
        run=replace(recipe.run, threads=chosen.run.threads),
    )


def measured(experiment: Experiment, world: World, say: Callable[[str], None]) -> Recipe:
    """The recipe with the settings in place of `train.fast` that are fastest here; `say` gets what is measured.

    This process measures for all: one of the world's batches, without an exchange of gradients.
    """
    recipe, dataset = experiment.recipe, experiment.dataset
    train, data, threads = recipe.train, recipe.data, recipe.run.threads
    torch.set_num_threads(threads or torch.get_num_threads())

    # A part of a batch that takes long.
    part = batch_share(data.global_batch, world.size) // train.accumulation
    few = min(part, FEW)
    plain = trial_step(experiment, replace(train, fast=False, compile=False), few, world)
    plain()
    images = min(part, max(few, int(few * SECONDS_A_STEP / seconds_of(plain))))

    def step_of(form: TrainConfig) -> Callable[[], object]:
        return trial_step(experiment, form, images, world)

    say(f"fast: measuring steps of {images} images" + (f", a part of a batch of {part}" if images < part else ""))
    form = choose_form(train, step_of, cuda_graphs=world.device.type == "cuda" and world.size == 1, say=say)
    if world.device.type == "cpu" and not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = choose_threads(step_of(form), say)

    if train.compile:
        chosen = replace(form, compile=True)
    else:
        size_of_epoch = augmentation_of(data, dataset, train.epochs).size_of_epoch
        assert size_of_epoch is not None
        sizes = {size_of_epoch(epoch) for epoch in range(train.epochs)}
        num_steps = train.epochs * steps_per_epoch(len(dataset.train), global_batch=data.global_batch)
        chosen = choose_compiled(
            form,
            step_of,
            num_steps=num_steps * train.accumulation * part / images,
            num_shapes=len(sizes) + EVALUATION_SHAPES,
            say=say,
        )
        torch.compiler.reset()
    say(f"fast: takes {words(chosen)}" + (f", threads {threads}" if threads else ""))
    return replace(recipe, train=chosen, run=replace(recipe.run, threads=threads))


def trial_step(experiment: Experiment, train: TrainConfig, images: int, world: World) -> Callable[[], object]:
    """A training step that repeats one batch and learns nothing."""
    recipe = experiment.recipe
    data = replace(recipe.data, global_batch=images, repeated_augmentation=1, workers=0)
    train = replace(train, accumulation=1, sync_batchnorm=False)
    trial = replace(experiment, recipe=replace(recipe, train=train, data=data, run=RunConfig()))
    trainer = make_trainer(trial, World(device=world.device), quiet=True)
    trainer.lr_fn = lambda step: 0.0
    inputs, targets = next(trainer.train_loader.epoch(train.epochs - 1))  # whose images have their full size
    return lambda: trainer.train_step(inputs, targets)
