"""The table that `describe` computes, against the paper and other people's counts."""

import json
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import resnet_core

# He et al. 2015, Table 1, last row: multiply-adds in 1e9, of v1; some rounded (7.57), others cut off (3.86).
PAPER_GIGA_MULTIPLY_ADDS = {"resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}

# Published by torchvision with its weights (meta["_ops"]), of v1.5.
TORCHVISION_GIGA_MULTIPLY_ADDS = {
    name: torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    for name in resnet_core.list_models(exclude="cifar_*")
}


@pytest.mark.parametrize("name", PAPER_GIGA_MULTIPLY_ADDS)
def test_multiply_adds_of_v1_are_the_papers(name):
    description = resnet_core.describe(name)
    v1 = description.multiply_adds_by_form.get("v1", description.multiply_adds)
    assert abs(v1 / 1e9 - PAPER_GIGA_MULTIPLY_ADDS[name]) < 0.1


@pytest.mark.parametrize("name", TORCHVISION_GIGA_MULTIPLY_ADDS)
def test_multiply_adds_of_v15_are_those_torchvision_publishes(name):
    assert round(resnet_core.describe(name).multiply_adds / 1e9, 3) == TORCHVISION_GIGA_MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", resnet_core.list_models())
def test_totals_are_exact(name):
    description = resnet_core.describe(name, image_size=64)
    with torch.device("meta"):
        model = resnet_core.get_model(name)
    assert description.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert description.parameters == sum(row.parameters for row in description.rows)
    assert description.multiply_adds == sum(row.multiply_adds for row in description.rows)


@pytest.mark.parametrize(("name", "pixels"), [("resnet50", 483), ("resnet101", 1027), ("resnet152", 1507)])
def test_receptive_fields_of_v1_are_the_published_ones(name, pixels):
    """Araujo, Norris & Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", table of ResNet v1."""
    with torch.device("meta"):
        model = resnet_core.get_model(name, stride_in_1x1=True)
    fields = {row.name: row.receptive_field for row in resnet_core.describe(model).rows}
    assert fields["layer4"] == pixels
    assert fields["fc"] is None


@pytest.mark.parametrize(
    ("depths", "block", "small"),
    [((1, 1, 1, 1), "BasicBlock", False), ((1, 2, 1, 1), "Bottleneck", False), ((1, 1, 1, 1), "BasicBlock", True)],
)
def test_receptive_field_is_what_the_gradient_reaches(depths, block, small):
    build = partial(resnet_core.Backbone, getattr(resnet_core, block), depths, small_images=small)
    model, row = build(norm_layer=nn.Identity).double(), resnet_core.describe(build()).rows[-3]
    if not small:
        model.maxpool = nn.AvgPool2d(3, 2, 1)  # its gradient reaches every pixel, not the largest alone
    size = 128 if small else 512
    images = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    features = model.eval().forward_features(images)
    features[0, 0, 8, 8].backward()
    assert int((images.grad[0, 0].sum(dim=0) > 0).sum()) == row.receptive_field


def test_the_network_for_small_images_is_described_as_it_is():
    """11,173,962 parameters: what the model summaries of those who train kuangliu/pytorch-cifar's ResNet18 print."""
    description = resnet_core.describe(resnet_core.resnet18(small_images=True, num_classes=10), image_size=32)
    assert description.parameters == 11_173_962
    assert [row.output_shape for row in description.rows[:3]] == [(64, 32, 32)] * 3

    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert description.rows == resnet_core.describe(theirs, image_size=32).rows


def test_describing_a_model_leaves_it_alone():
    model = resnet_core.resnet18().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    resnet_core.describe(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_name_and_live_model_give_the_same_table():
    by_name, live = resnet_core.describe("resnet50", 96), resnet_core.describe(resnet_core.resnet50(), 96)
    assert by_name.rows == live.rows
    assert by_name.multiply_adds_by_form == live.multiply_adds_by_form


def test_torchvisions_models_are_described_alike():
    ours = resnet_core.describe(resnet_core.resnet18())
    theirs = resnet_core.describe(torchvision.models.resnet18())
    assert [(row.name, row.output_shape, row.parameters, row.multiply_adds) for row in theirs.rows] == [
        (row.name, row.output_shape, row.parameters, row.multiply_adds) for row in ours.rows
    ]


def test_the_table_and_its_json_say_the_same():
    description = resnet_core.describe("resnet50")
    printed, parsed = str(description), json.loads(description.to_json())
    assert parsed["parameters"] == 25_557_032
    assert "25,557,032" in printed
    assert "layer1 (conv2_x)  1x1, 64 | 3x3, 64 | 1x1, 256" in printed
    assert "v1.5   4.089 G" in printed
    assert "v1     3.858 G" in printed
    for row in parsed["rows"]:
        assert str(row["output_shape"]) in printed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("resnet5",), ValueError, "did you mean resnet50"),
        (("resnet50", 0), ValueError, "image_size must be at least 1 pixel and at most 32768, got 0"),
        ((50,), TypeError, "takes a model or a name, got int"),
        ((nn.Linear(3, 3),), ValueError, "needs a model with a Conv2d"),
    ],
)
def test_mistakes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        resnet_core.describe(*arguments)
