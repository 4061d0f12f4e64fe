"""What people bring: files of other people's making, each loaded to the bit or refused with a remedy that works."""

import itertools
import json
import shlex

import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import WeightsError, load_model, load_weights
from tests.weights.kinds import KINDS, try_kind
from tests.weights.networks import akamaster, akamaster_checkpoint


def with_statistics(build, size):
    """A network with weights and BatchNorm statistics of its own."""
    torch.manual_seed(0)
    model = build(num_classes=5)
    model(torch.randn(2, 3, size, size))
    return model.eval()


@pytest.fixture(scope="module")
def small():
    return with_statistics(resnet_core.cifar_resnet20, 32)  # 1 MB


@pytest.fixture(scope="module")
def large():
    return with_statistics(resnet_core.resnet18, 64)


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def renamed(state, **parts):
    """The state dict with the first part of some names exchanged."""
    return {
        ".".join([parts.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): v
        for name, v in state.items()
    }


def body(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def saved(content, folder):
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def extra(*shapes):
    """Tensors beside the body, by name."""
    return {name: torch.ones(*shape) for name, *shape in shapes}


class Hyperparameters:
    """Anybody's class."""

    def __init__(self):
        self.lr = 0.1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_people_bring_is_the_same_network_or_its_remedy_leads_to_it(kind, tmp_path):
    if kind.needs:
        pytest.importorskip(kind.needs)
    _, difference = try_kind(kind, tmp_path)
    assert difference <= kind.bound


def assert_same(model, expected):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert same_bits(model(images), expected(images))


def test_the_command_that_a_body_needs_works(large, tmp_path, cli):
    path = saved({"encoder": body(large.state_dict())}, tmp_path)
    for split, number in itertools.product(("train", "val"), range(2)):
        place = tmp_path / "images" / split / f"class{number}"
        place.mkdir(parents=True)
        Image.new("RGB", (40, 40), (number * 200, 0, 0)).save(place / "a.png")
    command = json.loads(cli("inspect", path, "--json").stdout)["command"]
    assert command == f"resnet-core train finetune --model.name resnet18 --model.weights {path} --data.path FOLDER"
    words = shlex.split(command.replace("FOLDER", str(tmp_path / "images")))[1:]
    done = cli(*words, "--data.global-batch", 2, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "resnet18" in done.stdout
    refused = cli("predict", path, tmp_path / "images")
    assert refused.returncode == 2
    assert "has no classifier" in refused.stderr


def test_several_networks_are_a_choice_and_each_of_the_remedies_works(small, tmp_path, cli):
    other = {name: value + 1 if value.is_floating_point() else value for name, value in small.state_dict().items()}
    path = saved({"state_dict": prefixed(small.state_dict(), "generator.") | prefixed(other, "critic.")}, tmp_path)
    with pytest.raises(WeightsError, match=r"holds 2 networks: choose one with --prefix generator.; --prefix critic."):
        load_model(path)
    assert_same(load_model(path, prefix="generator.")[0], small)
    assert same_bits(load_model(path, prefix="critic.")[0].state_dict()["fc.bias"], other["fc.bias"])
    with pytest.raises(
        WeightsError, match=r"has no network at prefix 'x'; it has key 'state_dict', prefix 'generator.'"
    ):
        load_model(path, prefix="x")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert cli("predict", path, tmp_path / "a.png").returncode == 2
    done = cli("predict", path, tmp_path / "a.png", "--prefix", "generator.")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (lambda: resnet_core.cifar_resnet20(in_channels=1), {"in_channels": 1}),
        (lambda: resnet_core.cifar_resnet20(shortcut="B"), {"shortcut": "B"}),
        (lambda: resnet_core.resnet18(in_channels=4, num_classes=3), {"in_channels": 4, "num_classes": 3}),
        (lambda: resnet_core.resnet18(small_images=True, num_classes=3), {"small_images": True, "num_classes": 3}),
        (lambda: resnet_core.cifar_resnet20().half(), {}),
    ],
)
def test_stem_shortcuts_and_dtype_are_read_from_the_shapes(build, config, tmp_path):
    expected = build()
    path = saved(expected.state_dict(), tmp_path)
    model, info = load_model(path)
    assert info.config == config
    for name, value in model.state_dict().items():
        assert same_bits(value, expected.state_dict()[name].to(value.dtype)), name


def test_extra_tensors_are_an_error_whose_remedy_works(small, tmp_path):
    path = saved(small.state_dict() | {"extra.weight": torch.ones(3)}, tmp_path)
    with pytest.raises(WeightsError, match=r"not cifar_resnet20's: extra.weight; .*ignore=\['extra.weight'\]"):
        load_model(path)
    assert_same(load_model(path, ignore=["extra.weight"])[0], small)
    report = load_weights(resnet_core.cifar_resnet20(3), path, new_head=True)
    assert (report.unexpected, report.dropped) == (("extra.weight",), ("fc.bias", "fc.weight"))


def test_a_network_of_ones_own_takes_a_file_under_its_own_names(tmp_path):
    theirs, own = akamaster(), akamaster()
    path = saved(akamaster_checkpoint(theirs), tmp_path)
    assert load_weights(own, path).missing == tuple(name for name in own.state_dict() if "num_batches" in name)
    assert all(same_bits(value, own.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_another_network_is_refused_with_the_nearest(small, tmp_path, cli):
    state = small.state_dict()
    del state["layer2.1.bn1.bias"]
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError, match=r"The nearest is cifar_resnet20, but layer2.1.bn1.bias is missing"):
        load_model(path)
    shown = cli("inspect", path)
    assert shown.returncode == 0
    assert "not one of this package. The nearest is cifar_resnet20" in shown.stdout


def test_inspect_shows_the_same_as_text_and_as_json(small, tmp_path, cli):
    path = saved({"net": prefixed(small.state_dict(), "module."), "args": Hyperparameters()}, tmp_path)
    text, found = cli("inspect", path).stdout, json.loads(cli("inspect", path, "--json").stdout)
    assert found == resnet_core.inspect_weights(path).to_json()
    (network,) = found["networks"]
    assert (network["key"], network["prefix"], network["model"]) == ("net", "module.", "cifar_resnet20")
    assert found["beside"] == ["tests.weights.test_inspect.Hyperparameters"]
    for shown in (found["command"], found["python"], "torch zip", "linear, 5 classes", "never built"):
        assert shown in text
    names = {"resnet_core": resnet_core}
    exec(found["python"], names)
    assert_same(names["network"], small)
