"""The architecture against the paper: shapes, depths, errors, and the file's own comments."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import resnet_core
from resnet_core import BasicBlock, Bottleneck, ResNet
from resnet_core.models import cifar, resnet
from resnet_core.models.resnet import TABLE_1, WIDER

SOURCE = Path(resnet.__file__)


def on_meta(build):
    with torch.device("meta"):
        return build().eval()


def shape_comments(source):
    """`self.layer1(x)  # [N, 64e, H/4, W/4]` -> ("layer1", ["N", "64e", "H/4", "W/4"]), for each such line."""
    for line in source.splitlines():
        if match := re.search(r"x = (?P<call>.*)  # \[(?P<shape>.*)\]$", line):
            yield match["call"], match["shape"].split(", ")


def expected_size(term, *, expansion, height, width, classes, batch):
    """The number that a term of a shape comment stands for; halves round up."""
    if match := re.fullmatch(r"(?P<side>[HW])(/(?P<divisor>\d+))?", term):
        return -(-(height if match["side"] == "H" else width) // int(match["divisor"] or 1))
    if match := re.fullmatch(r"(?P<factor>\d+)e", term):
        return int(match["factor"]) * expansion
    return {"N": batch, "num_classes": classes}.get(term) or int(term)


def live_shapes(model, images):
    """Output shape after each line of forward, by the name of the last module that the line calls."""
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output.shape}))
    model(images)
    shapes["flatten"] = shapes["avgpool"][:2]
    return shapes


@pytest.mark.parametrize("size", [(224, 224), (65, 97), (32, 64)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_shape_comments_of_the_architecture_are_true(name, size):
    model = on_meta(lambda: resnet_core.get_model(name, num_classes=7))
    shapes = live_shapes(model, torch.empty(2, 3, *size, device="meta"))
    comments = list(shape_comments(SOURCE.read_text()))
    assert len(comments) == 9
    for call, terms in comments:
        module = "flatten" if "flatten" in call else re.search(r"self\.(\w+)", call)[1]
        expansion = model.inplanes // 512
        expected = [
            expected_size(term, expansion=expansion, height=size[0], width=size[1], classes=7, batch=2)
            for term in terms
        ]
        assert list(shapes["bn1" if module == "relu" else module]) == expected, call


def test_shape_comments_of_the_cifar_networks_are_true():
    model = on_meta(resnet_core.cifar_resnet20)
    shapes = live_shapes(model, torch.empty(2, 3, 30, 32, device="meta"))
    comments = list(shape_comments(Path(cifar.__file__).read_text()))
    assert len(comments) == 6
    for call, terms in comments:
        module = "flatten" if "flatten" in call else re.search(r"self\.(\w+)", call)[1]
        expected = [expected_size(term, expansion=1, height=30, width=32, classes=10, batch=2) for term in terms]
        assert list(shapes["bn1" if module == "relu" else module]) == expected, call


def test_no_forward_has_an_if():
    functions = [node for node in ast.walk(ast.parse(SOURCE.read_text())) if isinstance(node, ast.FunctionDef)]
    forwards = [node for node in functions if node.name == "forward"]
    assert len(forwards) == 3
    assert not any(isinstance(child, ast.If | ast.IfExp) for node in forwards for child in ast.walk(node))


def test_table_1_is_the_papers():
    """He et al. 2015, Table 1: blocks of conv2_x .. conv5_x in the five columns."""
    basic, bottleneck = BasicBlock, Bottleneck
    assert {
        "resnet18": (basic, (2, 2, 2, 2)),
        "resnet34": (basic, (3, 4, 6, 3)),
        "resnet50": (bottleneck, (3, 4, 6, 3)),
        "resnet101": (bottleneck, (3, 4, 23, 3)),
        "resnet152": (bottleneck, (3, 8, 36, 3)),
    } == TABLE_1


@pytest.mark.parametrize("name", [*TABLE_1, *WIDER])
def test_the_number_in_a_name_counts_its_weighted_layers(name):
    model = on_meta(lambda: resnet_core.get_model(name))
    layers = [
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in module_name
    ]
    assert len(layers) == int(re.search(r"\d+", name)[0])


def test_features_then_head_is_the_whole_network():
    model = resnet_core.resnet18(num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape == (2, 512, 2, 2)
    assert torch.equal(model.forward_head(features), model(images))


def test_in_channels_changes_only_the_stem():
    grey, colour = (resnet_core.resnet18(in_channels=channels).state_dict() for channels in (1, 3))
    differing = [name for name in colour if grey[name].shape != colour[name].shape]
    assert differing == ["conv1.weight"]
    assert grey["conv1.weight"].shape == (64, 1, 7, 7)


def test_stride_in_1x1_moves_the_stride_of_the_three_halving_blocks():
    v15, v1 = resnet_core.resnet50(), resnet_core.resnet50(stride_in_1x1=True)
    for model, halving in ((v15, "conv2"), (v1, "conv1")):
        strided = [name for name, module in model.named_modules() if getattr(module, "stride", 1) == (2, 2)]
        expected = ["conv1"]
        for stage in ("layer2", "layer3", "layer4"):
            expected += [f"{stage}.0.{halving}", f"{stage}.0.downsample.0"]
        assert strided == expected
    assert v15.state_dict().keys() == v1.state_dict().keys()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ResNet(BasicBlock, [2, 2, 2, 2], groups=2), ValueError, r"only supports groups=1.*use Bottleneck"),
        (lambda: ResNet(BasicBlock, [2, 2, 2, 2], width_per_group=128), ValueError, r"base_width=128.*use Bottleneck"),
        (
            lambda: ResNet(BasicBlock, [2, 2, 2, 2], replace_stride_with_dilation=[False, False, True]),
            NotImplementedError,
            r"Dilation > 1 not supported in BasicBlock.*use Bottleneck",
        ),
        (lambda: ResNet(BasicBlock, [2, 2, 2, 2], stride_in_1x1=True), ValueError, "BasicBlock has no 1x1.*False"),
        (lambda: ResNet(Bottleneck, [3, 4, 6]), ValueError, r"each of 4 stages, got \[3, 4, 6\]"),
        (lambda: ResNet(Bottleneck, [3, 4, 6, 0]), ValueError, r"at least 1, of each of 4 stages"),
        (
            lambda: ResNet(Bottleneck, [1, 1, 1, 1], replace_stride_with_dilation=[True]),
            ValueError,
            r"None or 3 flags \(conv3_x .. conv5_x\), got \[True\]",
        ),
    ],
)
def test_combinations_that_do_not_exist_are_refused_with_the_remedy(build, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        build()


def test_dilation_keeps_the_resolution():
    model = on_meta(lambda: resnet_core.resnet50(replace_stride_with_dilation=[False, True, True]))
    assert model.forward_features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 2048, 28, 28)
    dilations = [model.layer3[0].conv2, model.layer3[1].conv2, model.layer4[0].conv2, model.layer4[1].conv2]
    assert [convolution.dilation[0] for convolution in dilations] == [1, 2, 2, 4]


def test_channels_last_and_bf16_reach_the_logits():
    model = resnet_core.resnet18(num_classes=4).eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    assert model.forward_features(images).is_contiguous(memory_format=torch.channels_last)
    assert model.bfloat16()(images.bfloat16()).dtype == torch.bfloat16
