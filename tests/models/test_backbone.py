"""What other code uses of a ResNet: stage outputs, the head, less memory."""

import copy
import inspect

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

import resnet_core
from resnet_core.models.backbone import Backbone, RecomputedStage, chosen_indices, has_small_stem
from resnet_core.models.registry import build_on_meta
from resnet_core.models.resnet import BasicBlock, Bottleneck


def tiny(block=Bottleneck, **config):
    torch.manual_seed(0)
    return Backbone(block, [1, 2, 1, 1], **config)


def images(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("flags", [None, (False, True, True), (True, False, True)])
def test_feature_info_says_what_the_maps_are(block, flags):
    if flags and block is BasicBlock:
        pytest.skip("only a Bottleneck can be dilated")
    model = tiny(block, replace_stride_with_dilation=flags)
    seen = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda module, inputs, output, name=info["module"]: seen.update({name: output.shape})
        )
    model(images(size=128))
    expected = {info["module"]: (2, info["num_chs"], *[128 // info["reduction"]] * 2) for info in model.feature_info}
    assert seen == expected
    assert model.num_features == seen["layer4"][1]


def test_feature_info_follows_a_stem_that_was_exchanged():
    model = tiny(stride_in_1x1=True)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
    assert tiny(small_images=True).feature_info == model.feature_info


def exchanged(name, **config):
    """torchvision's network with the stem that people put into it for CIFAR."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, **config)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_with_small_images_a_network_is_torchvisions_with_the_stem_exchanged(name):
    torch.manual_seed(0)
    ours, theirs = resnet_core.get_model(name, num_classes=10, small_images=True), exchanged(name, num_classes=10)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.conv1.weight.shape == (64, 3, 3, 3)

    for model in (ours, theirs):
        model.output = model(images(size=32))
        model.output.square().mean().backward()
    assert torch.equal(ours.output, theirs.output)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    assert torch.equal(ours.eval()(images(size=32)), theirs.eval()(images(size=32)))


def test_small_images_change_only_the_stem():
    torch.manual_seed(0)
    small = tiny(small_images=True, in_channels=1)
    assert small.conv1.weight.shape == (64, 1, 3, 3)
    large = tiny(in_channels=1).state_dict()
    assert all(torch.equal(value, large[name]) for name, value in small.state_dict().items() if name != "conv1.weight")
    assert [has_small_stem(model) for model in (small, tiny(), exchanged("resnet18"))] == [True, False, True]
    for name in resnet_core.list_models(exclude="cifar*"):
        model = build_on_meta(name, small_images=True)
        assert model.forward_features(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (4, 4)


def test_a_backbone_overrides_nothing_of_resnet_and_prints_as_it():
    added = {name for name in vars(Backbone) if not name.startswith("__")}
    assert added & {*dir(resnet_core.ResNet)} == {"_get_name"}
    theirs, ours = (inspect.signature(network).parameters for network in (resnet_core.ResNet, Backbone))
    assert {name: ours[name] for name in theirs} == theirs
    assert [*ours] == [*theirs, "small_images"]
    assert repr(tiny()) == repr(resnet_core.ResNet(Bottleneck, [1, 2, 1, 1]))
    assert repr(tiny()).startswith("ResNet(")
    assert resnet_core.describe(tiny()).model == "ResNet"


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_intermediates_are_the_maps_of_an_ordinary_forward(block, small):
    model = tiny(block, small_images=small).eval()
    maps = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda module, inputs, output, name=info["module"]: maps.setdefault(name, output.clone())
        )
    model(images())
    last, intermediates = model.forward_intermediates(images())
    assert torch.equal(last, maps["layer4"])
    for ours, expected in zip(intermediates, maps.values(), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(model.forward_head(last), model(images()))
    assert torch.equal(model.forward_head(last, pre_logits=True), torch.flatten(model.avgpool(last), 1))


def test_indices_choose_maps_and_stop_early_computes_no_further():
    model = tiny().eval()
    every = model.forward_intermediates(images(), intermediates_only=True)
    for indices, expected in ((None, [0, 1, 2, 3, 4]), (2, [3, 4]), ([0, 3], [0, 3]), ([-1, 1], [1, 4]), ((4,), [4])):
        chosen = model.forward_intermediates(images(), indices, intermediates_only=True)
        assert [map.shape for map in chosen] == [every[number].shape for number in expected]
        assert all(torch.equal(map, every[number]) for map, number in zip(chosen, expected, strict=True))
    model.layer4 = None  # would fail if it were called
    model.layer3 = None
    last, chosen = model.forward_intermediates(images(), [0, 2], stop_early=True)
    assert torch.equal(last, every[2])
    assert torch.equal(chosen[0], every[0])


@given(st.lists(st.integers(-7, 7), max_size=4) | st.integers(-2, 7))
def test_indices_out_of_range_are_refused(indices):
    valid = 1 <= indices <= 5 if isinstance(indices, int) else indices and all(-5 <= index < 5 for index in indices)
    if valid:
        assert chosen_indices(indices, 5) <= set(range(5))
    else:
        with pytest.raises(ValueError, match="indices"):
            chosen_indices(indices, 5)


def test_a_new_head_takes_the_place_of_the_old():
    model = tiny(num_classes=10).double().eval()
    features = model.forward_features(images().double())
    assert model.get_classifier() is model.fc
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.get_classifier().weight.dtype == torch.float64
    assert model(images().double()).shape == (2, 3)
    model.reset_classifier(0, "avg")
    assert torch.allclose(model(images().double()), features.mean((2, 3)), rtol=1e-12)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.num_classes == 0
    model.fc = nn.Linear(model.num_features, 7)
    assert model.num_classes == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.reset_classifier(3, "max"), "global_pool must be None or 'avg', got 'max'"),
        (lambda model: model.reset_classifier(-1), "num_classes must be at least 0, got -1"),
        (lambda model: model.forward_intermediates(images(), output_fmt="NHWC"), "output_fmt must be 'NCHW'"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


def step(model):
    """Gradients and buffers after two training forwards and backwards."""
    for _ in range(2):
        model(images()).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients | dict(model.named_buffers())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_checkpointing_changes_no_bit_of_gradients_and_statistics(block):
    model = tiny(block, num_classes=5)
    recomputed = copy.deepcopy(model)
    recomputed.set_grad_checkpointing()
    expected = step(model)
    actual = step(copy.deepcopy(recomputed))
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    assert recomputed.layer2[1].bn1.num_batches_tracked == 0  # the copy was trained
    recomputed.set_grad_checkpointing(False)
    assert [type(module) for module in recomputed.modules()] == [type(module) for module in model.modules()]


def test_checkpointing_keeps_the_mode_of_each_stage_and_refuses_stages_with_hooks():
    model = tiny()
    model.layer1.eval()
    before = list(model.state_dict())
    model.set_grad_checkpointing()
    assert list(model.state_dict()) == before
    assert [model.layer1.training, model.layer2.training] == [False, True]
    hook = model.layer4.register_full_backward_hook(lambda *_: None)
    model.set_grad_checkpointing()  # changes nothing
    with pytest.raises(ValueError, match=r"layer4 has hooks.* call set_grad_checkpointing first"):
        model.set_grad_checkpointing(False)
    assert isinstance(model.layer1, RecomputedStage)
    hook.remove()
    model.set_grad_checkpointing(False)
    assert type(model.layer1) is nn.Sequential


def test_checkpointing_works_with_later_hooks_and_under_the_compiler():
    model, compiled = tiny(num_classes=5), tiny(num_classes=5)
    called = []
    compiled.set_grad_checkpointing()
    compiled.layer1.register_forward_hook(lambda *_: called.append("layer1"))
    expected = step(model)
    compiled.compile(backend="aot_eager")
    actual = step(compiled)
    assert called
    for name in expected:
        assert torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-6), name


def activation_bytes(model):
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(images(batch=4, size=128)).square().mean().backward()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Activation"]


def test_checkpointing_takes_less_memory():
    model = resnet_core.resnet50()
    kept = activation_bytes(model)
    model.set_grad_checkpointing()
    recomputed = activation_bytes(model)
    print(f"ResNet-50's activations at the peak: {kept / 2**20:.1f} MiB, checkpointed {recomputed / 2**20:.1f} MiB")
    assert recomputed < kept / 2


def test_every_builder_of_the_ten_gives_a_backbone_with_the_same_signature():
    with torch.device("meta"):
        for name in resnet_core.list_models("*res*", exclude="cifar*"):
            assert isinstance(resnet_core.get_model(name), Backbone)
    assert list(inspect.signature(Backbone.forward_intermediates).parameters)[1:] == [
        "x", "indices", "norm", "stop_early", "output_fmt", "intermediates_only",
    ]  # fmt: skip
