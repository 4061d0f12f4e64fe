"""Recipes: what a trainer made from one does, and the run's folder."""

import json
import tomllib
from dataclasses import replace

import pytest
import torch

from resnet_core.recipes import (
    RECIPES,
    ScheduleConfig,
    from_mapping,
    get_recipe,
    make_loaders,
    make_trainer,
    prepare,
    run,
    to_toml,
)
from resnet_core.train import TrainConfig, World

TINY = replace(RECIPES["digits"], train=TrainConfig(epochs=1), schedule=ScheduleConfig())


def test_a_trainer_follows_its_recipe():
    recipe = RECIPES["digits"]
    trainer = make_trainer(recipe)
    steps_per_epoch = 1437 // 64
    assert trainer.num_steps == 20 * steps_per_epoch
    assert trainer.lr_fn(0) == pytest.approx(0.1 / (2 * steps_per_epoch))
    assert trainer.lr_fn(2 * steps_per_epoch - 1) == 0.1
    assert trainer.lr_fn(11 * steps_per_epoch) == pytest.approx(0.05)
    (group,) = trainer.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, True)
    assert len(group["params"]) == len(list(trainer.model.parameters()))
    augment = trainer.train_loader.batches.augment
    assert (augment.crop_padding, augment.flip, augment.size_of_epoch(0)) == (2, False, 16)


def test_the_seed_decides_the_weights_and_the_order():
    def first_loss(seed):
        return next(make_trainer(replace(TINY, seed=seed)).steps()).loss

    assert first_loss(1) == first_loss(1) != first_loss(2)


def test_a_recipe_survives_toml():
    for recipe in RECIPES.values():
        assert from_mapping(type(recipe), tomllib.loads(to_toml(recipe)), "test") == recipe


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'digts'; did you mean digits"):
        get_recipe("digts")


def test_a_run_that_goes_on_elsewhere_says_that_it_is_not_bit_for_bit(tmp_path, capsys):
    run(TINY, tmp_path / "run")
    assert "bit for bit" not in capsys.readouterr().out
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads()
    (tmp_path / "run" / "environment.json").write_text(json.dumps({**environment, "threads": 99}))
    (tmp_path / "run" / "result.json").unlink()

    run(TINY, tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"continuing, but not bit for bit: threads was 99, is {environment['threads']}" in printed
    assert "continuing from step 22/22" in printed
    assert (tmp_path / "run" / "result.json").exists()


def test_any_number_of_processes_evaluates_but_training_is_refused_before_it_begins(tmp_path):
    shares = [make_loaders(TINY, World(rank=rank, size=7))[2] for rank in range(7)]
    assert sum(len(labels) for share in shares for _, labels in share) == 360
    with pytest.raises(ValueError, match="global batch of 64 cannot be split equally over 7 processes"):
        prepare(TINY, tmp_path / "run", world_size=7)
    assert not (tmp_path / "run").exists()
