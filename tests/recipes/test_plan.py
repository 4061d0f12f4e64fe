"""What `train --dry-run` says, against counting by hand and against a run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.recipes.checks import check
from resnet_core.recipes.experiment import load
from resnet_core.recipes.plan import make_plan, saved_values, state_tensors
from resnet_core.recipes.recipe import ModelConfig
from resnet_core.train import TrainConfig
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.optimizers import OptimizerConfig

DIGITS = RECIPES["digits"]


def plan_of(recipe, processes=1):
    """What `train --dry-run` prints."""
    experiment = load(recipe)
    check(experiment, processes)
    return make_plan(experiment, processes)


def test_the_plan_of_a_recipe_is_what_its_trainer_does():
    plan, trainer = plan_of(DIGITS, processes=2), make_trainer(DIGITS)
    assert plan.parameters == sum(parameter.numel() for parameter in trainer.model.parameters())
    assert plan.batch == 32
    assert [plan.lr_fn(step) for step in range(50)] == [trainer.lr_fn(step) for step in range(50)]
    assert plan.weights_bytes == 3 * 4 * plan.parameters  # weights, gradients, momentum
    assert "1,437 images of 10 classes to train on, 360 images of 10 classes to evaluate on" in str(plan)
    assert "660: 30 epochs of 22" in str(plan)
    assert trainer.num_steps == 660
    assert "16 x 16 pixels in training, 16 x 16 in evaluation" in str(plan)
    assert "▁" in str(plan)
    assert "█" in str(plan)


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        ({"averaging": AveragingConfig(ema_decay=0.9, ema_every_steps=660)}, 1),
        ({"model": ModelConfig(name="resnet18"), "train": TrainConfig(epochs=30, accumulation=32)}, 1),
        ({"train": TrainConfig(epochs=30, accumulation=64)}, 1),  # 4 x 4 pixels are left at the end
        ({"data": replace(DIGITS.data, train_size=16, train_size_start=8, train_size_epochs=2)}, 64),
    ],
)
def test_what_can_just_be_trained_is_planned(changes, processes):
    plan = plan_of(replace(DIGITS, **changes), processes)
    assert plan.processes == processes
    assert ("8 x 8 growing to 16 x 16 pixels in training" in str(plan)) == ("data" in changes)


def test_batchnorm_over_all_processes_needs_no_two_images_in_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    train = TrainConfig(epochs=30, sync_batchnorm=True)
    data = replace(DIGITS.data, global_batch=2)
    recipe = replace(DIGITS, model=ModelConfig(name="resnet18"), train=train, data=data)
    assert plan_of(recipe, processes=2).batch == 1
    with pytest.raises(ValueError, match=r"train.sync_batchnorm: torch synchronizes BatchNorm only on GPUs"):
        plan_of(recipe, processes=3)  # more than there are GPUs
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="global batch of 2 cannot be split equally over 3 processes"):
        plan_of(recipe, processes=3)  # on three machines


def test_what_the_backward_needs_is_counted():
    """Conv2d keeps its input, BatchNorm2d its own and two statistics, ReLU its output, Linear its input."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(8 * 6 * 6, 5))
    expected = 3 * 8 * 8 + 8 * 6 * 6 + 8 * 6 * 6
    assert saved_values(model, torch.Size((3, 8, 8))) == pytest.approx(expected, rel=0.05)


def test_half_the_batch_and_half_the_bits_take_half_the_activations():
    whole = plan_of(DIGITS)
    assert plan_of(DIGITS, processes=2).activation_bytes == whole.activation_bytes / 2
    parts = replace(DIGITS, train=TrainConfig(epochs=20, accumulation=2))
    assert plan_of(parts).activation_bytes == whole.activation_bytes / 2
    assert "in 2 parts" in str(plan_of(parts))
    bf16 = replace(DIGITS, train=TrainConfig(epochs=20, precision="bf16"))
    assert plan_of(bf16).activation_bytes == whole.activation_bytes / 2


@pytest.mark.parametrize(("name", "tensors"), [("sgd", 1), ("decoupled_sgd", 1), ("lamb", 2)])
def test_the_optimizers_state_is_counted(name, tensors):
    optimizer = OptimizerConfig(name=name)
    assert state_tensors(replace(DIGITS, optimizer=optimizer)) == tensors
    assert state_tensors(replace(DIGITS, optimizer=OptimizerConfig(momentum=0.0))) == 0
    averaged = replace(DIGITS, averaging=AveragingConfig(ema_decay=0.9))
    assert plan_of(averaged).weights_bytes == plan_of(DIGITS).weights_bytes * 4 / 3
