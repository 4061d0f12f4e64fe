"""`resnet50(weights=...)`: published sets from a cache laid out by hand, and files."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file

import resnet_core
from parity.drop_in import images
from resnet_core.comparison.trace import calibrate
from resnet_core.data import load_digits
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import (
    WeightsError,
    WeightsInfo,
    containers,
    files,
    find_weights,
    pretrained,
    read_info,
    torch_files,
    write_weights,
)
from resnet_core.weights.files import load_weights, read_weights
from resnet_core.weights.pretrained import load_model


def trained(name="resnet18", **config):
    """torchvision's model with weights of its own, and statistics."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, **config)
    calibrate(model, images(seed=1, batch=4))
    return model.eval()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torch's cache with our resnet18 V1 set in it, which has the hash that the catalogue gives."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = trained()
    path = folder / "resnet18-f37072fd.pth"
    torch.save(model.state_dict(), path)
    monkeypatch.setattr("resnet_core.weights.download.hash_of", lambda path: "f37072fd" + "0" * 56)
    return model


@pytest.mark.parametrize(
    "config",
    [
        {"weights": "DEFAULT"},
        {"weights": "IMAGENET1K_V1"},
        {"weights": "ResNet18_Weights.IMAGENET1K_V1"},
        {"weights": torchvision.models.ResNet18_Weights.DEFAULT},
        {"pretrained": True},
        {"weights": "DEFAULT", "num_classes": 1000},
    ],
    ids=str,
)
def test_published_weights_by_every_name_people_use(published, config):
    assert same_bits(resnet_core.resnet18(**config).eval()(images()), published(images()))


def test_pretrained_false_means_no_weights():
    torch.manual_seed(0)
    model = resnet_core.resnet18(pretrained=False)
    torch.manual_seed(0)
    assert same_bits(model.fc.weight, resnet_core.resnet18().fc.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 10}, r"needs num_classes=1000, got 10; to keep the body.*reset_classifier"),
        ({"stride_in_1x1": True}, "needs stride_in_1x1=False, got True"),
        ({"in_channels": 1}, r"conv1\.weight: \[64, 3, 7, 7\], model \[64, 1, 7, 7\]"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused(published, config, message):
    with pytest.raises(ValueError, match=message):
        resnet_core.resnet18(weights="DEFAULT", **config)


def test_what_cannot_fit_is_refused_before_the_download(monkeypatch):
    def fetch(url, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr("resnet_core.weights.pretrained.fetch", fetch)
    with pytest.raises(ValueError, match="needs num_classes=1000, got 10"):
        resnet_core.resnet18(weights="DEFAULT", num_classes=10)
    with pytest.raises(ValueError, match="needs num_classes=1000, got 10"):
        resnet_core.composer_resnet("resnet18", 10, True)
    with pytest.raises(ValueError, match="BasicBlock only supports groups=1"):
        resnet_core.composer_resnet("resnet18", pretrained=True, groups=2)
    with pytest.raises(TypeError, match="bogus"):
        resnet_core.resnet18(weights="DEFAULT", bogus=1)


def test_the_remedy_for_another_class_count_works(published):
    model = resnet_core.resnet18(weights="DEFAULT").eval()
    model.reset_classifier(10)
    assert model(images()).shape == (2, 10)
    assert same_bits(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)


def test_a_file_brings_its_own_configuration(tmp_path):
    torch.manual_seed(0)
    config = {"num_classes": 7, "stride_in_1x1": True}
    model = resnet_core.resnet50(**config)
    calibrate(model, images(seed=1, batch=4))
    path = tmp_path / "v1.safetensors"
    write_weights(path, model.state_dict(), WeightsInfo(model="resnet50", config=config))
    for weights in (path, str(path)):
        assert same_bits(resnet_core.resnet50(weights=weights).eval()(images()), model.eval()(images()))
    with pytest.raises(ValueError, match="needs stride_in_1x1=True, got False"):
        resnet_core.resnet50(weights=path, stride_in_1x1=False)
    with pytest.raises(ValueError, match="holds weights of resnet50, not resnet18"):
        resnet_core.resnet18(weights=path)


def test_a_file_that_says_nothing_gives_the_number_of_classes(tmp_path):
    model = trained(num_classes=7)
    path = tmp_path / "theirs.safetensors"
    write_weights(path, model.state_dict())
    assert same_bits(resnet_core.resnet18(weights=path).eval()(images()), model(images()))
    with pytest.raises(ValueError, match="needs num_classes=7, got 8"):
        resnet_core.resnet18(weights=path, num_classes=8)
    with pytest.raises(WeightsError, match="holds weights of resnet18, not resnet34; ask for resnet18"):
        resnet_core.resnet34(weights=path)


def test_a_network_in_place_of_a_file_is_refused(tmp_path):
    network = resnet_core.cifar_resnet20()
    with pytest.raises(TypeError, match=r"published set, got a CifarResNet; load_weights\(model, file\) loads them"):
        load_model(network)
    with pytest.raises(TypeError, match="takes a network and then a file or tensors by name, got str and CifarResNet"):
        load_weights("model.safetensors", network)


def test_a_run_s_file_says_what_it_is(digits_run):
    path = digits_run[0] / "model.safetensors"
    info = read_info(path)
    assert info.model == "cifar_resnet20"
    assert info.config == {"num_classes": 10, "in_channels": 1}
    assert info.class_names == tuple("0123456789")
    assert len(read_weights(path)) == len(resnet_core.cifar_resnet20().state_dict())


def test_info_survives_its_trip_through_metadata():
    info = WeightsInfo(
        model="resnet50",
        config={"num_classes": 3},
        transform=find_weights("resnet50", "DEFAULT").transform,
        class_names=("a", "b", "ü"),
        origin="a test",
    )
    assert WeightsInfo.from_metadata(info.to_metadata()) == info
    assert WeightsInfo.from_metadata({"format": "pt"}) is None
    for broken in ("{", "[]", '{"model": 1, "what": 2}', '{"transform": {"resize_size": 1}, "class_names": null}'):
        with pytest.raises(ValueError, match="cannot be read"):
            WeightsInfo.from_metadata({"resnet_core": broken})


@pytest.fixture
def steps(monkeypatch):
    """The steps of the road on which weights become a network, in the order in which they are called."""
    taken = []

    def counted(module, name):
        original = getattr(module, name)

        def call(*arguments, **options):
            taken.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(containers, "read_header")
    counted(containers, "load")
    counted(torch_files, "unpickle_zip")
    counted(files, "find_faults")
    counted(pretrained, "fetch")
    counted(pretrained, "build_on_meta")
    counted(pretrained, "build")
    return taken


def test_a_file_is_read_checked_and_built_once_whoever_asks(tmp_path, steps):
    model = resnet_core.resnet18(num_classes=7)
    file = tmp_path / "model.safetensors"
    write_weights(file, model.state_dict(), WeightsInfo(model="resnet18", config={"num_classes": 7}))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    once = ["read_header", "load", "build_on_meta", "find_faults", "build"]
    for load in (load_model, lambda path: resnet_core.resnet18(weights=path)):
        steps.clear()
        load(file)
        assert steps == once
    steps.clear()
    load_model(tmp_path)  # as a run's folder
    assert steps == once
    steps.clear()
    load_model(tmp_path / "model.pth", model="resnet18")
    assert steps == ["unpickle_zip", "build_on_meta", "find_faults", "build"]


def test_a_published_set_is_built_on_meta_then_fetched_and_fitted_once_whoever_asks(published, steps):
    for load in (lambda: load_model("resnet18:IMAGENET1K_V1"), lambda: resnet_core.resnet18(weights="DEFAULT")):
        steps.clear()
        load()
        assert steps == ["build_on_meta", "fetch", "unpickle_zip", "find_faults", "build"]


def test_weights_take_as_much_randomness_as_a_network_without_them(published):
    torch.manual_seed(0)
    resnet_core.resnet18()
    expected = torch.rand(1)
    torch.manual_seed(0)
    resnet_core.resnet18(weights="DEFAULT")
    assert same_bits(torch.rand(1), expected)


# A digits run's weights in half precision, written by the version before the package was sorted into rooms.
OLD_FILE = Path(__file__).parent / "fixtures" / "digits-float16.safetensors"
OLD_HASH = "5c76d5dabb3d93a408e373779621017974e5d80854f5f64f6553e9ff6194e912"


def test_a_file_of_an_earlier_version_is_read_to_the_bit_and_classifies_digits():
    sha256 = hashlib.sha256()
    for name, value in sorted(load_file(OLD_FILE).items()):
        sha256.update(name.encode() + str(value.dtype).encode() + value.numpy().tobytes())
    assert sha256.hexdigest() == OLD_HASH

    tensors = read_weights(OLD_FILE)
    assert all(same_bits(value, tensors[name]) for name, value in load_file(OLD_FILE).items())
    model, info = load_model(OLD_FILE)
    assert info == WeightsInfo(
        model="cifar_resnet20",
        config={"num_classes": 10, "in_channels": 1},
        transform=ImageTransform(resize_size=16, crop_size=16, mean=(0.5,), std=(0.5,)),
        class_names=tuple("0123456789"),
        origin="resnet_core 0.1.0, trained on digits",
    )
    digits = load_digits()
    with torch.no_grad():
        guessed = model(info.transform.of_images(digits.test.images)).argmax(1)
    assert (guessed == digits.test.labels).float().mean() > 0.99
