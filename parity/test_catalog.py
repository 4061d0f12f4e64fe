"""The catalogue of ImageNet weights is torchvision's, field by field, and so is the preparation of images."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import resnet_core
from resnet_core.foundation.precision import same_bits
from resnet_core.models.resnet import TABLE_1, WIDER
from resnet_core.weights.catalog import CATALOG, find_weights, imagenet_classes

TEN = {model: CATALOG[model] for model in [*TABLE_1, *WIDER]}
SETS = [pytest.param(row, id=f"{row.model} {row.name}") for sets in TEN.values() for row in sets.values()]


def theirs(row):
    """torchvision's own entry for one of ours."""
    return torchvision.models.get_model_weights(row.model)[row.name]


def test_no_set_is_missing():
    published = {model: list(torchvision.models.get_model_weights(model).__members__) for model in TEN}
    assert {model: [*sets, "DEFAULT"] for model, sets in TEN.items()} == published


@pytest.mark.parametrize("row", SETS)
def test_a_set_is_torchvisions_field_by_field(row):
    weights = theirs(row)
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    preset = weights.transforms()
    assert row.url == weights.url
    assert (row.top1, row.top5) == (accuracy["acc@1"], accuracy["acc@5"])
    assert ([row.transform.resize_size], [row.transform.crop_size]) == (preset.resize_size, preset.crop_size)
    assert (list(row.transform.mean), list(row.transform.std)) == (preset.mean, preset.std)
    assert row.num_classes == len(weights.meta["categories"])
    assert imagenet_classes() == tuple(weights.meta["categories"])


@pytest.mark.parametrize("row", SETS)
def test_the_model_has_as_many_parameters_as_its_weights(row):
    with torch.device("meta"):
        model = resnet_core.get_model(row.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == theirs(row).meta["num_params"]


@pytest.mark.parametrize("row", SETS)
def test_torchvisions_enum_members_and_their_names_find_the_set(row):
    assert find_weights(row.model, theirs(row)) is row
    assert find_weights(row.model, str(theirs(row))) is row
    default = torchvision.models.get_model_weights(row.model).DEFAULT
    assert find_weights(row.model, default) is find_weights(row.model, "DEFAULT")
    for other in [model for model in CATALOG if model != row.model]:
        with pytest.raises(ValueError, match=f"does not belong to {other}, whose weights are"):
            find_weights(other, theirs(row))


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (224, 224), (257, 231), (64, 48), (31, 1000), (1, 1)], ids=str
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_images_are_prepared_as_torchvision_prepares_them(mode, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    for row in (find_weights("resnet50", "IMAGENET1K_V1"), find_weights("resnet50", "IMAGENET1K_V2")):
        expected = theirs(row).transforms()(image.convert("RGB"))  # which leaves the mode to its caller
        assert same_bits(row.transform(image), expected)
        assert expected.shape == (3, 224, 224)
