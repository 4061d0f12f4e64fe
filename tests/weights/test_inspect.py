"""What people bring: files of other people's making, each loaded to the bit or refused with a remedy that works."""

import copy
import itertools
import json
import shlex
import warnings

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import resnet_core
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import WeightsError, inspect_weights, load_model, load_weights
from resnet_core.weights.names import their_names


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


# What people save -> the same network.
SAVED = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled in DataParallel": lambda s: prefixed(s, "module._orig_mod."),
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 3, "hyper_parameters": Hyperparameters()},
    "Lightning with a criterion": lambda s: {"state_dict": prefixed(s, "net.") | {"criterion.weight": torch.ones(5)}},
    "tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "two levels": lambda s: {"checkpoint": {"params": s}},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "0.15", "global_steps": 7},
    "kuangliu's trainer": lambda s: {"net": prefixed(renamed(s, fc="linear"), "module."), "acc": 91.0, "epoch": 3},
    "mmpretrain": lambda s: {
        "state_dict": prefixed(body(s), "backbone.") | {f"head.{n}": v for n, v in s.items() if n.startswith("fc.")}
    },
    "head in a Sequential": lambda s: body(s) | {"fc.1.weight": s["fc.weight"], "fc.1.bias": s["fc.bias"]},
    "counters of a profiler": lambda s: s | extra(("total_ops", 1), ("layer1.0.conv1.total_params", 1)),
    "other values between the tensors": lambda s: {"net": s | {"note": "text", 5: 7, "who": Hyperparameters()}},
    "without counts of batches": lambda s: {n: v for n, v in s.items() if "num_batches" not in n},
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_what_people_save_is_the_same_network(kind, small, tmp_path):
    path = saved(SAVED[kind](small.state_dict()), tmp_path)
    model, info = load_model(path)
    assert (info.model, info.config) == ("cifar_resnet20", {"num_classes": 5})
    assert_same(model, small)
    own = resnet_core.cifar_resnet20(num_classes=5)
    load_weights(own, path)
    assert_same(own.eval(), small)


def assert_same(model, expected):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert same_bits(model(images), expected(images))


SCHEMES = {
    "transformers": lambda s: {theirs: s[ours] for ours, theirs in their_names("transformers", s).items()},
    "detectron2": lambda s: {theirs: s[ours] for ours, theirs in their_names("detectron2", s).items()},
    "Sequential of the children": lambda s: {theirs: s[ours] for ours, theirs in their_names("sequential", s).items()},
    "kuangliu": lambda s: {theirs: s[ours] for ours, theirs in their_names("kuangliu", s).items()},
}


@pytest.mark.parametrize("kind", SCHEMES)
def test_other_libraries_names_are_recognised(kind, large, tmp_path):
    model, info = load_model(saved(SCHEMES[kind](large.state_dict()), tmp_path))
    assert (info.model, info.config) == ("resnet18", {"num_classes": 5})
    assert_same(model, large)


PROJECTION = extra(("fc.0.weight", 64, 64), ("fc.2.weight", 9, 64))
BODIES = {
    "body alone": body,
    "segmentation encoder": lambda s: prefixed(body(s), "encoder.") | extra(("decoder.conv.weight", 3, 3, 1, 1)),
    "detector": lambda s: prefixed(body(s), "backbone.body.") | extra(("rpn.head.conv.weight", 3, 3, 1, 1)),
    "SwAV": lambda s: prefixed(
        body(s) | extra(("projection_head.0.weight", 8, 64), ("prototypes.weight", 9, 8)), "module."
    ),
    "MoCo v2's query": lambda s: {"state_dict": prefixed(body(s) | PROJECTION, "module.encoder_q.")},
    "MoCo v1's query": lambda s: {
        "state_dict": prefixed(body(s) | extra(("fc.weight", 9, 64), ("fc.bias", 9)), "module.encoder_q.")
    },
    "DINO's teacher": lambda s: {
        "teacher": prefixed(body(s), "module.backbone.")
        | extra(("module.head.mlp.0.weight", 9, 64), ("module.head.last_layer.weight", 9, 9))
    },
    "fastai": lambda s: (
        {f"0.{theirs}": s[ours] for ours, theirs in their_names("sequential", body(s)).items()}
        | extra(("1.8.weight", 5, 9))
    ),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_without_a_classifier_is_said_to_be_one_and_starts_a_training(kind, small, tmp_path, cli):
    path = saved(BODIES[kind](small.state_dict()), tmp_path)
    with pytest.raises(WeightsError, match=r"has no classifier .* train finetune --model.name cifar_resnet20"):
        load_model(path)
    (network,) = inspect_weights(path).networks
    assert network.head.startswith("none")

    own = resnet_core.cifar_resnet20(num_classes=7)
    head = own.fc.weight.clone()
    load_weights(own, path, new_head=True)
    assert same_bits(own.fc.weight, head)
    assert all(same_bits(own.state_dict()[name], value) for name, value in body(small.state_dict()).items())


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


def test_averaged_weights_are_taken_and_said_to_be(small, tmp_path):
    raw = {name: value + 1 if value.is_floating_point() else value for name, value in small.state_dict().items()}
    for content, option in [
        ({"model": raw, "model_ema": AveragedModel(small).state_dict()}, "--key model"),
        ({"state_dict": raw, "state_dict_ema": small.state_dict(), "arch": "x"}, "--key state_dict"),
    ]:
        path = saved(content, tmp_path)
        with pytest.warns(UserWarning, match=rf"averaged ones are taken.* For the others add {option}"):
            assert_same(load_model(path)[0], small)
        model, _ = load_model(path, key=option.removeprefix("--key "))
        assert same_bits(model.state_dict()["fc.bias"], raw["fc.bias"])


def test_an_averaged_model_is_read_without_a_word(small, tmp_path, recwarn):
    assert_same(load_model(saved(AveragedModel(small).state_dict(), tmp_path))[0], small)
    assert not recwarn.list


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


def test_a_head_without_bias_computes_the_same(small, tmp_path):
    state = {name: value for name, value in small.state_dict().items() if name != "fc.bias"}
    path = saved(state, tmp_path)
    assert inspect_weights(path).networks[0].head == "linear without bias, 5 classes"
    expected = copy.deepcopy(small)
    nn.init.zeros_(expected.fc.bias)
    assert_same(load_model(path)[0], expected)


def test_a_pruned_network_is_put_together(small, tmp_path):
    pruned = copy.deepcopy(small)
    for module in [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]:
        prune.l1_unstructured(module, "weight", amount=0.5)
    assert_same(load_model(saved(pruned.state_dict(), tmp_path))[0], pruned)


def test_a_whole_pickled_network_is_read_without_being_built(small, tmp_path):
    path = saved(small, tmp_path)
    assert_same(load_model(path)[0], small)
    assert "resnet_core.models.cifar.CifarResNet" in inspect_weights(path).beside


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


def test_a_v1_network_is_what_the_caller_says(tmp_path):
    expected = resnet_core.resnet50(num_classes=3, stride_in_1x1=True).eval()
    path = saved(expected.state_dict(), tmp_path)
    assert any("first 1x1 (v1): v1.5 is assumed" in note for note in inspect_weights(path).cannot_show())
    model, info = load_model(path, stride_in_1x1=True)
    assert info.config == {"num_classes": 3, "stride_in_1x1": True}
    assert_same(model, expected)


def test_extra_tensors_are_an_error_whose_remedy_works(small, tmp_path):
    path = saved(small.state_dict() | {"extra.weight": torch.ones(3)}, tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected extra.weight; .*ignore=\['extra.weight'\]"):
        load_model(path)
    assert_same(load_model(path, ignore=["extra.weight"])[0], small)


def test_quantized_networks_say_what_they_are(small, tmp_path):
    state = small.state_dict()
    with warnings.catch_warnings(action="ignore"):
        state["conv1.weight"] = torch.quantize_per_tensor(state["conv1.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match=r"int8 network.* take the float32 weights"):
        load_model(saved(state, tmp_path))
    aware = small.state_dict() | {"conv1.activation_post_process.scale": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"quantization-aware network"):
        load_model(saved(aware, tmp_path))


def test_another_network_is_refused_with_the_nearest(small, tmp_path, cli):
    state = small.state_dict()
    del state["layer2.1.bn1.bias"]
    path = saved(state, tmp_path)
    with pytest.raises(WeightsError, match=r"the nearest is cifar_resnet20, but layer2.1.bn1.bias is missing"):
        load_model(path)
    shown = cli("inspect", path)
    assert shown.returncode == 0
    assert "not one of this package: the nearest is cifar_resnet20" in shown.stdout


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
