"""Names under other libraries, Keras' algebra, and what a conversion refuses; real libraries: parity/interop."""

import datetime
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

import resnet_core
from parity.drop_in import images
from resnet_core.builders import get_model
from resnet_core.comparison.trace import calibrate
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import convert as convert_module
from resnet_core.weights import libraries
from resnet_core.weights.containers import Container
from resnet_core.weights.convert import convert
from resnet_core.weights.files import read_info, read_weights, write_weights
from resnet_core.weights.header import WeightsError
from resnet_core.weights.identify import is_v1
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.inspect import inspect_container, inspect_weights
from resnet_core.weights.libraries import NETWORKS, fold_keras
from resnet_core.weights.names import SCHEMES, their_names

KERAS_MODELS = ("resnet50", "resnet101", "resnet152")
CLAIMED = dict.fromkeys(SCHEMES, NETWORKS) | {"keras": KERAS_MODELS}

# One row for each row of the tables and each number in it, from a model of each library.
KNOWN_NAMES = [
    ("transformers", "conv1.weight", "resnet.embedder.embedder.convolution.weight"),
    ("transformers", "bn1.running_var", "resnet.embedder.embedder.normalization.running_var"),
    ("transformers", "layer1.2.conv1.weight", "resnet.encoder.stages.0.layers.2.layer.0.convolution.weight"),
    ("transformers", "layer3.5.bn3.bias", "resnet.encoder.stages.2.layers.5.layer.2.normalization.bias"),
    ("transformers", "layer2.0.downsample.0.weight", "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"),
    ("transformers", "layer4.0.downsample.1.bias", "resnet.encoder.stages.3.layers.0.shortcut.normalization.bias"),
    ("transformers", "fc.bias", "classifier.1.bias"),
    ("keras", "conv1.weight", "conv1_conv.weight"),
    ("keras", "bn1.running_mean", "conv1_bn.running_mean"),
    ("keras", "layer1.0.conv2.weight", "conv2_block1_2_conv.weight"),
    ("keras", "layer3.35.bn3.bias", "conv4_block36_3_bn.bias"),
    ("keras", "layer2.0.downsample.0.weight", "conv3_block1_0_conv.weight"),
    ("keras", "layer4.0.downsample.1.bias", "conv5_block1_0_bn.bias"),
    ("keras", "fc.weight", "predictions.weight"),
    ("torchvision", "layer4.1.bn2.num_batches_tracked", "layer4.1.bn2.num_batches_tracked"),
    ("torchvision", "fc.weight", "fc.weight"),
    ("kuangliu", "layer2.0.downsample.1.weight", "layer2.0.shortcut.1.weight"),
    ("kuangliu", "fc.weight", "linear.weight"),
    ("detectron2", "bn1.weight", "stem.conv1.norm.weight"),
    ("detectron2", "layer1.0.downsample.1.bias", "res2.0.shortcut.norm.bias"),
    ("detectron2", "layer4.2.conv3.weight", "res5.2.conv3.weight"),
    ("sequential", "conv1.weight", "0.weight"),
    ("sequential", "layer1.0.conv1.weight", "4.0.conv1.weight"),
    ("sequential", "layer4.0.downsample.0.weight", "7.0.downsample.0.weight"),
]


def meta_state(name, **config):
    with torch.device("meta"):
        return get_model(name, **config).state_dict()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=7)
    calibrate(model, images(seed=1, batch=4))
    return model


@pytest.fixture
def weights(network, tmp_path):
    write_weights(tmp_path / "source.safetensors", network.state_dict())
    return tmp_path / "source.safetensors"


@pytest.mark.parametrize(("source", "ours", "theirs"), KNOWN_NAMES)
def test_names_are_the_librarys(source, ours, theirs):
    assert their_names(source, [ours]) == {ours: theirs}


@pytest.mark.parametrize("source", SCHEMES)
def test_name_tables_are_bijections_onto_our_keys(source):
    for model in CLAIMED[source]:
        state = meta_state(model)
        names = their_names(source, state)
        assert list(names) == list(state)
        assert len(set(names.values())) == len(state)


def test_no_two_networks_have_the_same_shapes():
    shapes = [{name: value.shape for name, value in meta_state(model).items()} for model in NETWORKS]
    assert all(a != b for a, b in itertools.combinations(shapes, 2))


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_model_and_its_classes_are_found_from_names_and_shapes(scheme, prefix, tmp_path):
    for model in CLAIMED[scheme]:
        state = meta_state(model, num_classes=7)
        names = their_names(scheme, state)
        theirs = {f"{prefix}{names[name]}": value for name, value in state.items()}
        (found,) = inspect_container(Container(tmp_path, "a test", {"epoch": 3, "net": theirs})).networks
        assert (found.model, found.config, found.key) == (model, {"num_classes": 7}, "net")
        assert found.prefix == f"{prefix}{SCHEMES[scheme].prefix}"
        assert found.head == "linear, 7 classes"
        assert found.tensors.keys() == state.keys()
        assert is_v1(found) == (SCHEMES[scheme].stride_in_1x1 and model in KERAS_MODELS)
        assert all(found.tensors[name] is state[name] for name in state)


def test_keras_convolution_and_batchnorm_fold_into_ours_exactly():
    random = torch.Generator().manual_seed(0)
    kernel, bias, gamma, beta, mean = (
        torch.randn(shape, generator=random) for shape in [(3, 3, 2, 5), (5,), (5,), (5,), (5,)]
    )
    variance = torch.tensor([1e-6, 1e-5, 1e-3, 0.1, 1.0])  # small ones show the epsilon
    x = torch.randn(2, 2, 8, 8, generator=random).double()
    kernel_oihw = torch.einsum("hwio->oihw", kernel).double()
    b, g, s, m, v = (value.double().reshape(1, 5, 1, 1) for value in (bias, gamma, beta, mean, variance))
    expected = g * (F.conv2d(x, kernel_oihw) + b - m) / (v + 1.001e-5).sqrt() + s  # keras: epsilon 1.001e-5

    values = {"conv1_conv/kernel": kernel, "conv1_conv/bias": bias, "conv1_bn/gamma": gamma, "conv1_bn/beta": beta}
    folded = fold_keras(values | {"conv1_bn/moving_mean": mean, "conv1_bn/moving_variance": variance})
    assert sorted(folded) == sorted(["conv1_conv.weight", *(f"conv1_bn.{n}" for n in BATCHNORM)])
    weight, (g, s, m, v) = folded["conv1_conv.weight"], (folded[f"conv1_bn.{name}"].double() for name in BATCHNORM)
    assert weight.is_contiguous()
    found = F.batch_norm(F.conv2d(x, weight.double()), m, v, g, s, eps=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


BATCHNORM = ("weight", "bias", "running_mean", "running_var")


def test_keras_dense_kernel_is_transposed_and_its_bias_kept():
    kernel, bias = torch.randn(4, 3), torch.randn(3)
    folded = fold_keras({"predictions/kernel": kernel, "predictions/bias": bias})
    assert torch.equal(folded["predictions.weight"], kernel.T)
    assert torch.equal(folded["predictions.bias"], bias)


def test_torchvision_weights_convert_with_no_difference(network, weights, tmp_path):
    transform = ImageTransform(resize_size=232, crop_size=224, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    conversion = convert(weights, tmp_path / "ours.safetensors", source="torchvision", transform=transform)
    assert conversion.model == "resnet18"
    assert conversion.config == {"num_classes": 7}
    assert conversion.largest_difference == 0.0
    assert conversion.tensors == len(network.state_dict())
    info = read_info(conversion.path)
    assert (info.model, info.config, info.transform) == ("resnet18", {"num_classes": 7}, transform)
    assert info.origin == "source.safetensors, converted from torchvision"
    ours = resnet_core.resnet18(num_classes=7)
    ours.load_state_dict(read_weights(conversion.path))
    assert same_bits(ours.eval()(images(seed=5)), network(images(seed=5)))


def test_an_old_file_without_batch_counters_converts(network, tmp_path):
    old = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    write_weights(tmp_path / "old.safetensors", old)
    conversion = convert(tmp_path / "old.safetensors", tmp_path / "ours.safetensors", source="torchvision")
    assert conversion.tensors == len(network.state_dict())


def test_a_composer_checkpoint_converts_without_bringing_anything_else_to_life(network, tmp_path):
    state = {"model": {f"module.{name}": value for name, value in network.state_dict().items()}}
    state |= {"timestamp": {"wall": datetime.timedelta(seconds=1)}, "optimizers": {"SGD": {"state": {}}}}
    checkpoint = {"state": state, "rng": [{"numpy": np.arange(4, dtype=np.uint32)}]}
    torch.save(checkpoint, tmp_path / "ep1.pt")
    conversion = convert(tmp_path / "ep1.pt", tmp_path / "ours.safetensors", source="composer")
    assert (conversion.model, conversion.largest_difference) == ("resnet18", 0.0)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"num_classes": 3, "in_channels": 1}, {}),
        ({"num_classes": 3, "small_images": True}, {}),
        ({"num_classes": 3, "stride_in_1x1": True}, {"stride_in_1x1": True}),
    ],
)
def test_variants_are_compared_with_torchvisions_network_changed_alike(config, options, tmp_path):
    name = "resnet50" if options else "resnet18"
    write_weights(tmp_path / "theirs.safetensors", get_model(name, **config).state_dict())
    conversion = convert(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", **options)
    assert (conversion.model, conversion.config, conversion.largest_difference) == (name, config, 0.0)


def test_what_a_file_of_ours_says_is_kept_and_only_its_sizes_change(tmp_path, monkeypatch):
    transform = ImageTransform(resize_size=30, crop_size=28, mean=(0.1, 0.2, 0.3))
    said = WeightsInfo(
        model="resnet50",
        config={"num_classes": 3, "stride_in_1x1": True, "replace_stride_with_dilation": [False, False, True]},
        transform=transform,
        class_names=tuple("abc"),
    )
    write_weights(tmp_path / "a.safetensors", get_model("resnet50", **said.config).state_dict(), said)
    for options, expected in (({}, transform), ({"sizes": (40, 32)}, replace(transform, resize_size=40, crop_size=32))):
        conversion = convert(tmp_path / "a.safetensors", tmp_path / f"{len(options)}.safetensors", **options)
        assert conversion.largest_difference == 0.0
        info = read_info(conversion.path)
        assert (info.config, info.class_names, info.transform) == (said.config, said.class_names, expected)
        assert "assumed" not in info.origin
    assert "resnet50, num_classes=3, stride_in_1x1=True" in str(inspect_weights(tmp_path / "a.safetensors"))
    body = {name: value for name, value in read_weights(tmp_path / "a.safetensors").items() if "fc." not in name}
    write_weights(tmp_path / "body.safetensors", body, said)
    names = {"resnet_core": resnet_core}
    monkeypatch.chdir(tmp_path)
    exec(inspect_weights("body.safetensors").python(), names)
    assert names["network"].layer2[0].conv1.stride == (2, 2)


def test_what_no_other_implementation_has_is_written_and_said_not_to_be_compared(tmp_path):
    state = get_model("cifar_resnet20", num_classes=3).state_dict()
    torch.save({"net": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "theirs.pth")
    conversion = convert(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert "not compared: no other implementation has this network" in str(conversion)
    assert read_weights(conversion.path).keys() == state.keys()
    assert read_info(conversion.path).config == {"num_classes": 3}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_composer_checkpoint_does_not_run(network, tmp_path, capsys):
    state = {"model": {f"module.{name}": value for name, value in network.state_dict().items()}}
    torch.save({"state": state, "rng": Evil()}, tmp_path / "ep1.pt")
    conversion = convert(tmp_path / "ep1.pt", tmp_path / "ours.safetensors", source="composer", allow_pickle=True)
    assert conversion.largest_difference == 0.0
    assert capsys.readouterr().out == ""


def test_a_pickle_that_is_no_composer_checkpoint_is_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(WeightsError, match=r"bare\.pt is not a checkpoint of Composer's Trainer"):
        convert(tmp_path / "bare.pt", tmp_path / "ours.safetensors", source="composer", allow_pickle=True)


def test_logits_that_differ_are_refused_and_nothing_is_written(weights, tmp_path, monkeypatch):
    def other(found, config):
        model = torchvision.models.resnet18(**config)
        model.load_state_dict(found.tensors)
        model.maxpool = torch.nn.MaxPool2d(3, 2, 0, ceil_mode=True)
        return model.eval()

    monkeypatch.setattr(libraries, "torchvision_network", other)
    with pytest.raises(WeightsError, match=r"differ from torchvision's own by .* nothing was written"):
        convert(weights, tmp_path / "ours.safetensors", source="torchvision")
    assert list(tmp_path.iterdir()) == [weights]


def test_logits_that_are_no_numbers_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "difference_on_random_images", lambda *networks: (float("nan"), 1.0))
    with pytest.raises(WeightsError, match="by nan"):
        convert(weights, tmp_path / "ours.safetensors", source="torchvision")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "tim"}, WeightsError, r"unknown source 'tim'; did you mean timm\?"),
        ({"model": "resnet34"}, WeightsError, r"holds weights of resnet18, not resnet34"),
        ({"dst": "ours.pth", "source": "tim"}, WeightsError, r"ours\.pth must end in \.safetensors"),
        ({"dst": "source.safetensors"}, FileExistsError, r"source\.safetensors exists .*choose another name"),
        ({"dst": "nowhere/ours.safetensors"}, FileNotFoundError, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(arguments, error, message, weights, tmp_path):
    arguments = {"source": "torchvision", "dst": "ours.safetensors"} | arguments
    before = weights.read_bytes()
    with pytest.raises(error, match=message):
        convert(weights, tmp_path / arguments.pop("dst"), **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]
    assert weights.read_bytes() == before


def changed(state, **changes):
    """The state dict with some tensors replaced, or left out where None."""
    return {name: value for name, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"conv1.weight": torch.ones(32, 3, 7, 7)},
            r"conv1\.weight has shape \[32, 3, 7, 7\] instead of \[64, 3, 7, 7\]",
        ),
        ({"bn1.bias": None}, r"The nearest is resnet18, but bn1\.bias is missing"),
        ({"layer1.0.se.weight": torch.ones(1)}, r"layer1\.0\.se\.weight is unknown"),
        ({f"layer2.{i}": torch.ones(1) for i in range(5)}, r"layer2\.\d is unknown, .*is unknown and 2 more"),
    ],
)
def test_tensors_of_another_network_are_refused_by_name(changes, message, network, tmp_path):
    write_weights(tmp_path / "other.safetensors", changed(network.state_dict(), **changes))
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "other.safetensors", tmp_path / "ours.safetensors", source="torchvision")
    assert not (tmp_path / "ours.safetensors").exists()


DESCRIBED = {
    "timm": '{"architecture": "resnet18"}',
    "transformers": '{"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], '
    '"hidden_sizes": [64, 128, 256, 512]}',
    "keras": "{}",
}


@pytest.mark.parametrize("source", DESCRIBED)
def test_a_library_that_is_not_installed_is_named_with_its_remedy(source, weights, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(DESCRIBED[source])
    monkeypatch.setitem(sys.modules, source, None)
    with pytest.raises(WeightsError, match=rf"{source} is not installed: pip install 'resnet-core\[interop\]'"):
        convert(weights, tmp_path / "ours.safetensors", source=source)
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("timm", '{"architecture": "resnetblur50"}', r"config\.json has architecture 'resnetblur50', which blurs"),
        ("timm", "[1]", r"config\.json must hold a JSON object"),
        ("transformers", "{", r"config\.json is not JSON"),
        ("transformers", '{"model_type": "vit"}', r"config\.json has model_type 'vit', which is not a network"),
        ("transformers", None, r"config\.json must exist and have model_type 'resnet'"),
        ("transformers", DESCRIBED["timm"], r"config\.json must exist and have model_type 'resnet'"),
        (None, DESCRIBED["transformers"].replace("[2, 2, 2, 2]", "[3, 4, 6, 3]"), "weights of resnet18, not resnet34"),
    ],
)
def test_the_config_beside_the_weights_is_believed(source, config, message, weights, tmp_path):
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        convert(weights.rename(tmp_path / "model.safetensors"), tmp_path / "ours.safetensors", source=source)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"has no model.safetensors: its run .* or give a weights file"):
        convert(tmp_path, tmp_path / "ours.safetensors", source="timm")
