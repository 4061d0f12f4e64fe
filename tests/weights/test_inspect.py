"""What people bring: files of other people's making, each loaded to the bit or refused with a remedy that works."""

import json

import pytest
import torch

import resnet_core
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import WeightsError, load_model, load_weights
from tests.weights.kinds import KINDS, Anything, difference, network, prefixed, try_kind
from tests.weights.networks import akamaster, akamaster_checkpoint


def saved(content, folder):
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_people_bring_is_the_same_network_or_its_remedy_leads_to_it(kind, tmp_path):
    if kind.needs:
        pytest.importorskip(kind.needs)
    assert try_kind(kind, tmp_path)[1] <= kind.bound


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


def test_extra_tensors_are_an_error_whose_remedy_works(tmp_path):
    path = saved(network().state_dict() | {"extra.weight": torch.ones(3)}, tmp_path)
    with pytest.raises(WeightsError, match=r"not cifar_resnet20's: extra.weight; .*ignore=\['extra.weight'\]"):
        load_model(path)
    load_model(path, ignore=["extra.weight"])
    report = load_weights(resnet_core.cifar_resnet20(3), path, new_head=True)
    assert (report.unexpected, report.dropped) == (("extra.weight",), ("fc.bias", "fc.weight"))


def test_a_network_of_ones_own_takes_a_file_under_its_own_names(tmp_path):
    theirs, own = akamaster(), akamaster()
    path = saved(akamaster_checkpoint(theirs), tmp_path)
    assert load_weights(own, path).missing == tuple(name for name in own.state_dict() if "num_batches" in name)
    assert all(same_bits(value, own.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_another_network_is_refused_with_the_nearest(tmp_path, cli):
    state = network().state_dict()
    del state["layer2.1.bn1.bias"]
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError, match=r"The nearest is cifar_resnet20, but layer2.1.bn1.bias is missing"):
        load_model(path)
    shown = cli("inspect", path)
    assert shown.returncode == 0
    assert "not one of this package. The nearest is cifar_resnet20" in shown.stdout


def test_inspect_shows_the_same_as_text_and_as_json(tmp_path, cli):
    path = saved({"net": prefixed(network().state_dict(), "module."), "args": Anything()}, tmp_path)
    text, found = cli("inspect", path).stdout, json.loads(cli("inspect", path, "--json").stdout)
    assert found == resnet_core.inspect_weights(path).to_json()
    (first,) = found["networks"]
    assert (first["key"], first["prefix"], first["model"]) == ("net", "module.", "cifar_resnet20")
    assert found["beside"] == ["tests.weights.kinds.Anything"]
    for shown in (found["command"], found["python"], "torch zip", "linear, 5 classes", "never built"):
        assert shown in text
    names = {"resnet_core": resnet_core}
    exec(found["python"], names)
    assert difference(names["network"], network()) == 0
