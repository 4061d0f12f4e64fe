"""Which of our models a network is meant to be, and whether it is that model to the letter."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import resnet_core
from parity.patients.people import PEOPLE, LinearEnds
from resnet_core.comparison.diagnosis import is_healthy, reference_for
from resnet_core.comparison.references import complete, nearest
from resnet_core.comparison.structure import structure_of
from resnet_core.comparison.trace import trace
from resnet_core.models.registry import MODELS, build_on_meta
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.comparison.test_people import REFERENCES


def healthy(build):
    """The reference that a network is to the letter; None for an edited one."""
    with torch.device("meta"):
        network = build().eval()
    size = 32 if nearest(network).small_images else 64
    inputs = torch.empty(2, nearest(network).config.get("in_channels", 3), size, size, device="meta")
    structure = structure_of(trace(network, inputs, exact=False, fingerprints=False))
    return str(reference_for(structure)) if is_healthy(structure) else None


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_nearest_to_itself(name):
    assert str(nearest(build_on_meta(name))) == f"{name}()"


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "cifar_resnet20"])
def test_a_model_of_each_kind_is_healthy(name):
    assert healthy(partial(resnet_core.get_model, name)) == f"{name}()"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("resnet18", {"num_classes": 10, "in_channels": 1}),
        ("resnet18", {"num_classes": 10, "small_images": True}),
        ("cifar_resnet32", {"shortcut": "B"}),
    ],
)
def test_arguments_that_make_another_model_are_found(name, config):
    written = ", ".join(f"{key}={value!r}" for key, value in config.items())
    assert healthy(partial(resnet_core.get_model, name, **config)) == f"{name}({written})"


def edited(**layers):
    network = torchvision.models.resnet18(num_classes=10)
    for name, layer in layers.items():
        setattr(network, name, layer)
    return network


EDITED = {
    "eps": partial(torchvision.models.resnet18, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    "momentum": partial(resnet_core.resnet18, norm_layer=partial(nn.BatchNorm2d, momentum=0.01)),
    "dilation": partial(resnet_core.resnet50, replace_stride_with_dilation=(False, False, True)),
    "stride": partial(resnet_core.resnet50, stride_in_1x1=True),
    "max-pool": partial(edited, maxpool=nn.MaxPool2d(2, 2)),
    "ReLU": partial(edited, relu=nn.Identity()),
}


@pytest.mark.parametrize("build", EDITED.values(), ids=EDITED)
def test_an_edited_network_is_not_healthy(build):
    assert healthy(build) is None
    with torch.device("meta"):
        assert nearest(build()).arguments[0].__name__ in ("BasicBlock", "Bottleneck")


def test_torchvisions_own_network_is_healthy():
    assert healthy(edited) == "resnet18(num_classes=10)"


@pytest.mark.parametrize("depths", [(2, 2, 2, 1), (2, 2, 3, 1)])
def test_depths_that_are_nearly_a_models_are_meant_to_be_it(depths):
    assert str(nearest(ResNet(BasicBlock, depths, 1000))) == "resnet18()"


def test_a_bottleneck_of_another_expansion_is_still_meant_to_be_that_bottleneck():
    class Narrow(Bottleneck):
        expansion = 2

    assert str(nearest(ResNet(Narrow, (3, 4, 6, 3), 10))) == "resnet50(num_classes=10)"


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", PEOPLE)
def test_a_hand_written_network_finds_its_reference(name):
    person = PEOPLE[name]
    reference, inputs, words = complete(person.network, None, None)
    expected = REFERENCES["Bottleneck" if name == "Amr-Abdellatif" else person.reference](
        in_channels=person.network.channels
    )
    assert {key: value.shape for key, value in reference().state_dict().items()} == {
        key: value.shape for key, value in expected.state_dict().items()
    }
    assert words.endswith("the nearest of our models")
    assert person.network()(inputs).shape == reference()(inputs).shape


def test_the_reference_may_be_left_out_or_come_first():
    left_out = resnet_core.compare(LinearEnds, rungs=["logits"])
    assert left_out.reference.startswith("ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), the nearest")
    assert left_out.mistakes == ("no ReLU after the addition",)
    assert f"reference: {left_out.reference}" in str(left_out)

    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = resnet_core.compare(REFERENCES["BasicBlock"], LinearEnds, inputs, rungs=["logits"])
    assert first.reference.endswith("the first network")
    assert first.mistakes == ("no ReLU after the addition",)


def test_a_network_that_is_no_resnet_is_said_to_share_little():
    network = nn.Sequential(nn.Conv2d(3, 64, 7), nn.Conv2d(64, 5, 3), nn.Conv2d(5, 6, 3))
    reference, _, words = complete(network, None, None)
    assert "num_classes" not in reference.config  # a map of features has no number of classes
    assert words.endswith("the nearest of our models, which has 0 of the network's 3 convolutions")


class Sized(nn.Module):
    """Takes images of one size only, and says so by an assertion."""

    def __init__(self, size):
        super().__init__()
        self.network, self.size = REFERENCES["BasicBlock"](), size

    def forward(self, x):
        assert x.shape[-1] == self.size
        return self.network(x)


def test_a_size_is_found_that_the_network_takes():
    assert complete(partial(Sized, 224), None, None)[1].shape == (2, 3, 224, 224)
    with pytest.raises(
        RuntimeError, match=r"the first network does not run .* AssertionError: .*, at .*references.py:\d+"
    ):
        resnet_core.compare(partial(Sized, 7))


def test_a_network_that_leaves_torch_is_refused():
    network = REFERENCES["BasicBlock"]()
    network.register_forward_pre_hook(lambda module, inputs: torch.from_numpy(inputs[0].numpy()))
    with pytest.raises(RuntimeError, match=r"no layer of the first network reads the images: .* keep them tensors"):
        resnet_core.compare(network)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Conv3d(3, 8, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 10)), "3-D convolutions; .* scope"),
        ((nn.Flatten(), nn.Linear(12, 10)), "no convolution of images, .* name a reference"),
    ],
)
def test_networks_that_have_no_reference_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        resnet_core.compare(nn.Sequential(*layers))
