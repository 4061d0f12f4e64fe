"""`--model.freeze`: parts of a network that keep the weights they start from."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
import torchvision

import resnet_core
from resnet_core.models.freezing import freeze
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.recipes.experiment import load
from resnet_core.recipes.plan import make_plan
from resnet_core.recipes.recipe import ModelConfig
from resnet_core.weights import WeightsInfo, write_weights


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights whose BatchNorm statistics are not those of a new network."""
    torch.manual_seed(1)
    network = resnet_core.cifar_resnet20(in_channels=1)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer), alpha=0.1)
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    info = WeightsInfo(model="cifar_resnet20", config={"num_classes": 10, "in_channels": 1}, origin="a test")
    write_weights(path, network.state_dict(), info)
    return path, network.state_dict()


def digits(weights, freeze):
    return replace(RECIPES["digits"], model=ModelConfig(name="cifar_resnet20", weights=str(weights), freeze=freeze))


def after_steps(recipe, count, folder=None):
    trainer = make_trainer(recipe, folder=folder)
    trainer.restore()
    for _ in islice(trainer.steps(), count):
        pass
    trainer.save()
    return trainer.model.state_dict()


@pytest.mark.parametrize(
    ("parts", "trained"), [("body", ("fc",)), ("stages:2", ("layer3", "fc")), ("none", ("conv1", "bn1", "layer", "fc"))]
)
def test_frozen_parts_keep_weights_and_statistics_and_all_others_learn(parts, trained, start):
    path, before = start
    after = after_steps(digits(path, parts), 2)

    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith(trained), name


def test_a_run_with_frozen_parts_continues_to_the_same_bits(start, tmp_path):
    recipe = digits(start[0], "stages:1")
    at_once = after_steps(recipe, 3, tmp_path / "at once")
    after_steps(recipe, 1, tmp_path / "twice")
    for name, tensor in after_steps(recipe, 2, tmp_path / "twice").items():
        assert torch.equal(tensor, at_once[name]), name


@pytest.mark.parametrize("build", [resnet_core.resnet18, torchvision.models.resnet18])
def test_a_frozen_network_computes_in_training_what_it_computes_in_evaluation(build):
    torch.manual_seed(0)
    network = build(num_classes=4)
    freeze(network, "body")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.train()(images), network.eval()(images))


def test_the_plan_counts_what_is_frozen(start):
    plan = make_plan(load(digits(start[0], "body")))
    whole = make_plan(load(digits(start[0], "none")))
    assert plan.parameters - plan.frozen == 65 * 10
    assert plan.weights_bytes < 0.4 * whole.weights_bytes
    assert plan.activation_bytes < 0.01 * whole.activation_bytes
    assert f"{plan.frozen:,} of them frozen" in str(plan)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"freeze": "body"}, "model.freeze body would keep random weights; choose model.weights to start from"),
        ({"freeze": "stages:4", "weights": "x"}, "must be none, body, or stages:1 to stages:3, got 'stages:4'"),
        ({"freeze": "head", "weights": "x"}, "got 'head'"),
    ],
)
def test_what_cannot_be_frozen_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(name="cifar_resnet20", **model)
