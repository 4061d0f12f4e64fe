"""Code written for torchvision's ResNet goes on working with ours."""

import copy
import pickle
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

import resnet_core
from parity.drop_in import images
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits

BOTH = (resnet_core, torchvision.models)


def seeded(build):
    torch.manual_seed(0)
    return build()


def assert_same(ours, reference):
    assert ours.keys() == reference.keys()
    for key in reference:
        assert same_bits(ours[key], reference[key]), key


def test_feature_extractor_calls_of_torchvisions_documentation_work():
    nodes = {"layer1.0.add": "sum", "layer2.1.relu_1": "inner", "layer4": "map", "flatten": "vector"}
    extracted = [create_feature_extractor(seeded(package.resnet18), nodes).eval()(images()) for package in BOTH]
    assert_same(*extracted)


def test_fpn_backbone_helper_accepts_our_backbone():
    pyramids = []
    for package in BOTH:
        backbone = seeded(lambda package=package: package.resnet50(norm_layer=nn.BatchNorm2d))
        calibrate(backbone, images(seed=1, batch=4))
        torch.manual_seed(1)
        pyramids.append(_resnet_fpn_extractor(backbone, trainable_layers=3).eval()(images(size=128)))
    assert list(pyramids[0]) == ["0", "1", "2", "3", "pool"]
    assert_same(*pyramids)


def test_faster_rcnn_trains_and_detects_on_our_backbone():
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0], [30.0, 20.0, 90.0, 80.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}]
    losses, detections = [], []
    for package in BOTH:
        backbone = seeded(package.resnet18)
        calibrate(backbone, images(seed=1, batch=4))
        torch.manual_seed(1)
        detector = FasterRCNN(_resnet_fpn_extractor(backbone, 5), num_classes=3, min_size=96, max_size=96)
        torch.manual_seed(2)
        losses.append(detector.train()(list(images(batch=1, size=96)), targets))
        detections.append(detector.eval()(list(images(batch=1, size=96)))[0])
    assert_same(*losses)
    assert_same(*detections)


def test_dilated_backbone_carries_deeplab():
    outputs = []
    for package in BOTH:
        flags = [False, True, True]
        backbone = seeded(lambda package=package, flags=flags: package.resnet50(replace_stride_with_dilation=flags))
        features = IntermediateLayerGetter(backbone, {"layer4": "out"})
        torch.manual_seed(1)
        outputs.append(DeepLabV3(features, DeepLabHead(2048, 5)).eval()(images(size=64)))
    assert_same(*outputs)
    assert outputs[0]["out"].shape == (2, 5, 64, 64)


def test_torchvisions_blocks_fit_into_our_network_and_ours_into_torchvisions():
    theirs = torchvision.models.resnet
    expected = seeded(lambda: theirs.ResNet(theirs.Bottleneck, [1, 1, 1, 1])).eval()(images())
    for network, block in ((resnet_core, theirs.Bottleneck), (theirs, resnet_core.Bottleneck)):
        model = seeded(lambda network=network, block=block: network.ResNet(block, [1, 1, 1, 1]))
        assert same_bits(model.eval()(images()), expected)


def test_zero_init_residual_finds_the_last_norm_of_any_block():
    theirs = torchvision.models.resnet
    for block in (theirs.BasicBlock, theirs.Bottleneck):
        expected = seeded(lambda block=block: theirs.ResNet(block, [1, 1, 1, 1], zero_init_residual=True))
        ours = seeded(lambda block=block: resnet_core.ResNet(block, [1, 1, 1, 1], zero_init_residual=True))
        assert_same(ours.state_dict(), expected.state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(clone):
    model = seeded(resnet_core.resnet18).eval()
    assert same_bits(clone(model)(images()), model(images()))


def test_torchscript_and_export_compute_the_same():
    model = seeded(resnet_core.resnet18).eval()
    expected = model(images())
    assert same_bits(torch.export.export(model, (images(),)).module()(images()), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in use
        assert same_bits(torch.jit.script(model)(images()), expected)
