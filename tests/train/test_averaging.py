"""Averages of weights against torch's own and a closed form; what is averaged, kept and put back."""

import copy
import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet_core.train.averaging import AveragingConfig, WeightAverage


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))


def walk(model, step):
    """Another weight and another running mean each step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model(torch.randn(4, 2, 6, 6, generator=generator))


def averaged(model, steps=12, decay=0.9, every_steps=1, average=None, start=0):
    average = average or WeightAverage(AveragingConfig(ema_decay=decay, ema_every_steps=every_steps))
    for step in range(start + 1, steps + 1):
        walk(model, step)
        average.update(model, step)
    return average


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("every_steps", [1, 3])
def test_the_average_is_torchs_bit_for_bit(every_steps):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average = averaged(copy.deepcopy(model), every_steps=every_steps)
    for step in range(1, 13):
        walk(model, step)
        if step % every_steps == 0:
            expected.update_parameters(model)
    assert_same(average.tensors, expected.module.state_dict())


def test_buffers_are_those_of_the_last_update():
    model = network()
    average = averaged(model)
    for name, value in model.named_buffers():
        assert torch.equal(average.tensors[name], value)
    assert not torch.equal(average.tensors["1.weight"], model[1].weight)


def test_steps_between_updates_change_nothing():
    model = network()
    average = averaged(model, steps=6, every_steps=3)
    before = copy.deepcopy(average.tensors)
    averaged(model, steps=8, average=average, start=6)
    assert_same(average.tensors, before)


def test_the_model_has_the_average_inside_and_its_own_weights_after():
    model = network()
    average = averaged(model)
    own = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    with suppress(KeyboardInterrupt), average.swapped_into(model):
        assert_same(model.state_dict(), average.tensors)
        model.train()(torch.zeros(4, 2, 6, 6))  # moves the running statistics of the model, not of the average
        raise KeyboardInterrupt
    assert_same(model.state_dict(), own)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_without_an_average_the_model_keeps_its_own():
    model = network()
    average = averaged(model, decay=0.0)
    assert average.tensors == {}
    own = copy.deepcopy(model.state_dict())
    with average.swapped_into(model):
        assert_same(model.state_dict(), own)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_average_that_was_saved_goes_on_bit_for_bit(memory_format):
    whole, cut = (network().to(memory_format=memory_format) for _ in range(2))
    expected = averaged(whole, steps=9, every_steps=2)

    first = averaged(cut, steps=5, every_steps=2)
    saved = {name: value.contiguous().clone() for name, value in first.tensors.items()}
    second = WeightAverage(first.config)
    second.load(saved, cut)
    assert all(value.stride() == cut.state_dict()[name].stride() for name, value in second.tensors.items())
    averaged(cut, steps=9, average=second, start=5)
    assert_same(second.tensors, expected.tensors)


def test_the_average_shares_no_memory_with_the_model_or_the_file():
    model = network()
    average = averaged(model, steps=1)
    loaded = WeightAverage(average.config)
    loaded.load(average.tensors, model)
    expected = copy.deepcopy(average.tensors)
    walk(model, 2)
    assert_same(average.tensors, expected)
    loaded.update(model, 2)
    assert_same(average.tensors, expected)


def test_tied_weights_are_averaged_under_both_names():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    average = WeightAverage(AveragingConfig(ema_decay=0.5))
    for step, value in enumerate((0.0, 1.0), 1):
        nn.init.constant_(model[0].weight, value)
        average.update(model, step)
    assert torch.equal(average.tensors["0.weight"], torch.full((2, 2), 0.5))
    assert torch.equal(average.tensors["1.weight"], torch.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 1}, r"averaging.ema_decay must be at least 0 and less than 1, got 1; 0 turns averaging off"),
        ({"ema_decay": -0.1}, r"averaging.ema_decay must be at least 0 and less than 1, got -0.1"),
        ({"ema_every_steps": 0}, "averaging.ema_every_steps must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AveragingConfig(**options)
