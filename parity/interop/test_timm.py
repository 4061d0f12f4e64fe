"""timm's tools over our backbone, and the same features from timm's own models."""

import inspect

import pytest
import torch

import resnet_core
from parity.drop_in import images
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits
from resnet_core.models.backbone import Backbone

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.interop

METHODS = ("forward_head", "forward_intermediates", "get_classifier", "reset_classifier", "set_grad_checkpointing")
NAMES = ("resnet18", "resnet50", "resnext50_32x4d")


def pair(name, **config):
    torch.manual_seed(0)
    ours = resnet_core.get_model(name, **config).eval()
    calibrate(ours, images(seed=1, batch=4))
    theirs = timm.create_model(name, **config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (2, 4), (3,)])
def test_feature_list_net_gives_the_maps_of_timms_model(name, indices):
    from timm.models._features import FeatureListNet

    ours, _ = pair(name)
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True, out_indices=indices)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    net = FeatureListNet(ours, out_indices=indices).eval()
    for map, expected in zip(net(images()), theirs.eval()(images()), strict=True):
        assert same_bits(map, expected)
    assert net.feature_info.channels() == theirs.feature_info.channels()
    assert net.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments", [{}, {"indices": 2}, {"indices": [-2, 0]}, {"indices": [1], "stop_early": True}], ids=str
)
def test_intermediates_are_timms(name, arguments):
    outputs = [model.forward_intermediates(images(), **arguments) for model in pair(name)]
    (ours, our_maps), (theirs, their_maps) = outputs
    assert same_bits(ours, theirs)
    for map, expected in zip(our_maps, their_maps, strict=True):
        assert same_bits(map, expected)


@pytest.mark.parametrize("method", METHODS)
def test_signatures_are_timms(method):
    ours, theirs = (
        [(each.name, each.default) for each in inspect.signature(getattr(owner, method)).parameters.values()]
        for owner in (Backbone, timm.models.resnet.ResNet)
    )
    assert ours == theirs


def test_a_new_head_is_timms():
    for classes in (0, 7):
        ours, theirs = pair("resnet18")
        for model in (ours, theirs):
            torch.manual_seed(3)
            model.reset_classifier(classes)
        assert same_bits(ours(images()), theirs(images()))
        assert ours.num_features == theirs.num_features
        assert ours.num_classes == theirs.num_classes
