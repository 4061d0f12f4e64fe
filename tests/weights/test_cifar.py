"""Networks for small images with other people's weights: kuangliu's, akamaster's, and files that say nothing."""

import re

import pytest
import torch

import resnet_core
from parity.drop_in import images as random_images
from resnet_core.comparison.trace import calibrate
from resnet_core.data import load_digits
from resnet_core.data.datasets import CIFAR10_CLASSES
from resnet_core.data.transforms import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from resnet_core.foundation.precision import same_bits
from resnet_core.recipes import ModelConfig, make_model
from resnet_core.weights import WeightsError, WeightsInfo, read_info, write_weights
from resnet_core.weights.convert import convert
from resnet_core.weights.pretrained import load_model, open_weights
from tests.weights.networks import akamaster, akamaster_checkpoint, kuangliu


def images(**options):
    return random_images(size=32, **options)


def trained(network):
    """The network with weights and statistics of its own."""
    torch.manual_seed(0)
    network = network()
    calibrate(network, images(seed=1, batch=4))
    return network.eval()


def renamed(state):
    """kuangliu's tensors under our names."""
    return {
        re.sub(r"\.shortcut\.", ".downsample.", re.sub(r"^linear\.", "fc.", key)): value for key, value in state.items()
    }


def test_kuangliu_s_resnet18_is_ours_for_small_images():
    theirs, ours = trained(kuangliu), resnet_core.resnet18(small_images=True, num_classes=10)
    ours.load_state_dict(renamed(theirs.state_dict()), strict=True)
    assert same_bits(ours.eval()(images()), theirs(images()))


def test_a_file_of_a_network_for_small_images_comes_back_as_one(tmp_path):
    theirs = trained(kuangliu)
    config = {"num_classes": 10, "small_images": True}
    write_weights(
        tmp_path / "said.safetensors", renamed(theirs.state_dict()), WeightsInfo(model="resnet18", config=config)
    )
    write_weights(tmp_path / "bare.safetensors", renamed(theirs.state_dict()))
    for name in ("said.safetensors", "bare.safetensors"):
        assert same_bits(resnet_core.resnet18(weights=tmp_path / name).eval()(images()), theirs(images()))
        with pytest.raises(ValueError, match="needs small_images=True, got False"):
            resnet_core.resnet18(weights=tmp_path / name, small_images=False)
    assert read_info(tmp_path / "said.safetensors").config == config


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_images_are_prepared_as_cifar_10_s_where_a_file_says_nothing(name, tmp_path):
    small = {} if name.startswith("cifar") else {"small_images": True}
    path = tmp_path / "bare.safetensors"
    write_weights(path, resnet_core.get_model(name, num_classes=4, **small).state_dict())
    info = load_model(path, model=name)[1]
    assert info.config == {"num_classes": 4, **small}
    assert (info.transform.resize_size, info.transform.crop_size) == (32, 32)
    assert (info.transform.mean, info.transform.std) == (CIFAR10_MEAN, CIFAR10_STD)
    assert info.class_names is None
    assert "assumed: images are prepared as for CIFAR-10" in info.origin
    assert ("its 3x3 stem has stride 1 and no max-pool" in info.origin) == bool(small)
    info = read_info(convert(path, tmp_path / "sizes.safetensors", sizes=(40, 36)).path)
    assert info.transform == ImageTransform(resize_size=40, crop_size=36, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    assert info.origin.endswith("; assumed: images are normalised by CIFAR-10's mean and deviation")
    assert info.image_size == 36
    assert WeightsInfo(model=name, config=small).image_size == 32
    assert WeightsInfo(model="resnet18").image_size == 224

    state = {f"1.{key}": value for key, value in load_model(path)[0].state_dict().items()}
    write_weights(tmp_path / "normalising.safetensors", state | {"0.mean": torch.zeros(3)})
    assert (
        ", though 0.mean in the file may normalise them" in load_model(tmp_path / "normalising.safetensors")[1].origin
    )

    write_weights(tmp_path / "grey.safetensors", resnet_core.get_model(name, in_channels=1, **small).state_dict())
    grey, info = load_model(tmp_path / "grey.safetensors", model=name)
    assert grey.conv1.in_channels == 1
    assert info.transform is None
    assert "images" not in info.origin
    with pytest.raises(WeightsError, match=r"takes images of 1 channels.*leave --resize-size and --crop-size out"):
        convert(tmp_path / "grey.safetensors", tmp_path / "never.safetensors", sizes=(40, 36))


def test_imagenets_weights_are_refused_for_small_images_before_the_download(monkeypatch):
    monkeypatch.setattr("resnet_core.weights.pretrained.fetch", None)
    message = (
        "resnet50's IMAGENET1K_V2 needs small_images=False, got True: it was trained with the stem for large images, "
        "a 7x7 convolution of stride 2 and a max-pool; leave small_images out, or leave weights out"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        resnet_core.resnet50(weights="DEFAULT", small_images=True)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torch's cache with a file in it as akamaster's ResNet-20, and the hash that the catalogue gives."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    network = trained(akamaster)
    torch.save(akamaster_checkpoint(network), folder / "resnet20-12fca82f.th")
    monkeypatch.setattr("resnet_core.weights.download.hash_of", lambda path: "12fca82f" + "0" * 56)
    return network


def test_akamasters_weights_compute_what_its_network_does(published):
    for config in ({}, {"num_classes": 10, "shortcut": "A", "in_channels": 3}):
        ours = resnet_core.cifar_resnet20(weights="DEFAULT", **config)
        assert same_bits(ours.eval()(images()), published(images()))
    ours, info = load_model("cifar_resnet20:CIFAR10_V1")
    assert same_bits(ours(images()), published(images()))
    assert info == open_weights("cifar_resnet20").info
    assert info.class_names == CIFAR10_CLASSES
    assert (info.transform.crop_size, info.transform.mean, info.transform.std) == (32, IMAGENET_MEAN, IMAGENET_STD)
    assert info.origin == (
        "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th, "
        "trained by Yerlan Idelbayev, BSD 2-Clause licence"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 100}, "needs num_classes=10, got 100; to keep the body under a new head"),
        ({"shortcut": "B"}, "needs shortcut='A', got 'B'"),
        ({"in_channels": 1}, r"conv1\.weight: \[16, 3, 3, 3\], model \[16, 1, 3, 3\]"),
        ({"pretrained": True}, "cifar_resnet20 has no weights 'IMAGENET1K_V1'; known are CIFAR10_V1"),
    ],
    ids=str,
)  # fmt: skip
def test_another_network_than_the_published_is_refused(published, config, message):
    weights = {} if "pretrained" in config else {"weights": "DEFAULT"}
    with pytest.raises(ValueError, match=message):
        resnet_core.get_model("cifar_resnet20", **weights, **config)


def test_a_run_starts_from_akamasters_weights(published):
    config = ModelConfig(name="cifar_resnet20", weights="cifar_resnet20")
    for classes, head_is_theirs in ((10, True), (100, False)):
        model = make_model(config, num_classes=classes, in_channels=3)
        assert same_bits(model.layer3[2].conv2.weight, published.layer3[2].conv2.weight)
        assert same_bits(model.fc.weight, published.linear.weight) == head_is_theirs


def test_a_cifar_network_takes_a_file_s_configuration_and_says_where_another_is_asked_for(tmp_path):
    path = tmp_path / "grey.safetensors"
    config = {"num_classes": 7, "in_channels": 1, "shortcut": "B"}
    network = resnet_core.cifar_resnet20(7, in_channels=1, shortcut="B")
    write_weights(path, network.state_dict(), WeightsInfo(model="cifar_resnet20", config=config))
    grey = load_digits().test.images[:2]
    assert same_bits(resnet_core.cifar_resnet20(weights=path).eval()(grey), network.eval()(grey))
    with pytest.raises(ValueError, match="needs num_classes=7, got 10"):
        resnet_core.cifar_resnet20(10, weights=path)
    assert resnet_core.cifar_resnet20().fc.out_features == 10
