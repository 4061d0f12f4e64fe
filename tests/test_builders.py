"""Names, builders and their errors."""

import inspect
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_core
from resnet_core import builders
from resnet_core.models.registry import build_on_meta


def test_every_name_is_public_and_builds():
    for name in resnet_core.list_models():
        with torch.device("meta"):
            model = resnet_core.get_model(name, num_classes=3)
        assert model.fc.out_features == 3
        assert getattr(resnet_core, name) is getattr(builders, name)


class CallsToTorch(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_on_meta_a_network_has_its_shapes_and_draws_no_random_numbers(name):
    with CallsToTorch() as calls:
        on_meta = build_on_meta(name, num_classes=3)
    assert "empty" in calls.names
    assert not {"normal_", "uniform_"} & calls.names  # the first costs 0.8 s on the meta device
    shapes = {key: (value.shape, value.dtype) for key, value in on_meta.state_dict().items()}
    state = resnet_core.get_model(name, num_classes=3).state_dict()
    assert shapes == {key: (value.shape, value.dtype) for key, value in state.items()}


def test_torch_hub_finds_every_model():
    repository = str(Path(resnet_core.__file__).parent.parent)
    assert set(resnet_core.list_models()) < set(vars(torch.hub._import_module("hubconf", f"{repository}/hubconf.py")))
    model = torch.hub.load(repository, "resnet18", source="local", num_classes=3)
    assert model.fc.out_features == 3


def test_list_models_filters_as_torchvisions():
    for patterns in ({"include": "resnet*"}, {"include": ["resnet5*", "wide*"], "exclude": "*101*"}):
        ours = resnet_core.list_models(**patterns)
        assert ours == torchvision.models.list_models(torchvision.models, **patterns)
    assert "cifar_resnet20" not in resnet_core.list_models(exclude="cifar_*")
    assert resnet_core.list_models("no such*") == []
    assert resnet_core.list_models(include=[]) == resnet_core.list_models()  # torchvision's too


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet101_2"])
def test_builders_take_the_arguments_of_torchvisions(name):
    ours, theirs = (inspect.signature(getattr(package, name)) for package in (resnet_core, torchvision.models))
    shape = [(parameter.kind, parameter.default) for parameter in ours.parameters.values()]
    assert shape == [(parameter.kind, parameter.default) for parameter in theirs.parameters.values()]
    assert list(ours.parameters)[:2] == ["weights", "progress"]


def test_the_constructor_takes_the_arguments_of_torchvisions():
    ours, theirs = (inspect.signature(package.ResNet) for package in (resnet_core, torchvision.models))
    expected = [(parameter.name, parameter.default) for parameter in theirs.parameters.values()]
    assert [(parameter.name, parameter.default) for parameter in ours.parameters.values()][: len(expected)] == expected


def test_names_are_found_in_any_case():
    with torch.device("meta"):
        assert isinstance(resnet_core.get_model("ResNet18"), resnet_core.ResNet)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: resnet_core.get_model("resnet51"), ValueError, "unknown model 'resnet51'; did you mean .*resnet50"),
        (lambda: resnet_core.get_model("vgg"), ValueError, "known are resnet18, resnet34"),
        (lambda: resnet_core.resnext50_32x4d(groups=8), ValueError, "has groups=32, got groups=8.*build resnet50"),
        (lambda: resnet_core.get_model(50), ValueError, "unknown model 50; known are"),
        (
            lambda: resnet_core.get_model("resnet18", num_classes="10"),
            TypeError,
            r"resnet18\(\) takes a whole number as num_classes, got '10'",
        ),
        (lambda: resnet_core.cifar_resnet20(in_channels=1.0), TypeError, "a whole number as in_channels, got 1.0"),
        (lambda: resnet_core.resnet18(weights=resnet_core.resnet18()), TypeError, r"got ResNet\([\s\S]{33}$"),
        (lambda: resnet_core.resnet50(weights="IMAGENET1K_V3"), ValueError, "IMAGENET1K_V2"),
        (lambda: resnet_core.resnet50(weights="V1", pretrained=True), ValueError, "give one of the two"),
        (
            lambda: resnet_core.resnet50(weights="no/such.safetensors"),
            ValueError,
            r"no/such\.safetensors does not exist",
        ),
        (lambda: resnet_core.resnet50(weights="weights.pth"), ValueError, "weights.pth does not exist"),
        (lambda: resnet_core.resnet50(num_clases=3), TypeError, "resnet50.*'num_clases'; did you mean num_classes"),
        (lambda: resnet_core.get_model("ResNet50", wieghts=None), TypeError, "resnet50.*'wieghts'; .* weights"),
        (lambda: resnet_core.resnet50(weights="DEFAULT", n_classes=3), TypeError, "resnet50.*'n_classes'.*num_classes"),
        (lambda: resnet_core.cifar_resnet20(shortcuts="B"), TypeError, "cifar_resnet20.*'shortcuts'.*shortcut"),
        (lambda: resnet_core.composer_resnet("resnet18", num_clases=3), TypeError, "composer_resnet.*num_classes"),
        (lambda: resnet_core.composer_resnet_cifar("resnet_20", inits=[]), TypeError, "_cifar.*known.*initializers"),
        (lambda: resnet_core.resnet50(None), TypeError, "positional"),
    ],
)
def test_mistakes_are_refused(call, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        call()
