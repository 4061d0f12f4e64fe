"""The model card's API: its arguments, errors and their order, and the classifier as it works without Composer."""

import copy
import inspect
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import resnet_core
from resnet_core import BasicBlock, ResNet
from resnet_core.classifier import builders
from resnet_core.classifier.builders import composer_resnet, composer_resnet_cifar
from resnet_core.classifier.classifier import PROBABILITIES, Classifier

IMAGES, LABELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
BATCH = (IMAGES, LABELS)
BROKEN = "raise RuntimeError('built for another torch')"


@pytest.fixture(autouse=True)
def no_composer(monkeypatch):
    monkeypatch.setitem(sys.modules, "composer", None)


@pytest.fixture
def tiny(request):
    torch.manual_seed(0)
    return Classifier(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3), getattr(request, "param", "soft_cross_entropy"))


def package(folder, name, source):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


def test_the_signatures_are_the_cards():
    assert str(inspect.signature(composer_resnet)).split(" -> ")[0].replace("collections.abc.", "") == (
        "(model_name: 'str', num_classes: 'int' = 1000, pretrained: 'bool' = False, groups: 'int' = 1, "
        "width_per_group: 'int' = 64, initializers: 'Sequence[str | Initializer] | None' = None, "
        "loss_name: 'str' = 'soft_cross_entropy')"
    )
    model = composer_resnet("resnet50", 7, False, 2, 32, ["BN_ONES"], "soft_cross_entropy")
    assert model.num_classes == 7
    assert model.module.layer1[0].conv2.weight.shape == (64, 32, 3, 3)  # 2 groups, each 32 wide


# FACTS: the card's five, with its slip in the count of ResNet-18 corrected.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_each_of_the_five_has_its_parameters(name, parameters):
    with torch.device("meta"):
        model = composer_resnet(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_network_is_the_builders_from_the_same_seed():
    torch.manual_seed(3)
    expected = resnet_core.get_model("resnet18").state_dict()
    torch.manual_seed(3)
    state = composer_resnet("resnet18").state_dict()
    assert list(state) == [f"module.{key}" for key in expected]
    assert all(torch.equal(state[f"module.{key}"], expected[key]) for key in expected)


MODEL = (
    r"model_name must be one of \['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'\] instead of resnext1\."
)
LOSS = r"Unrecognized loss function: hinge\. loss_name must be one of \['soft_cross_entropy', 'binary_cross_entropy_wi"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"model_name": "resnext1", "loss_name": "hinge", "groups": 2, "initializers": ["no"]}, ValueError, MODEL),
        ({"model_name": "resnext50_32x4d"}, ValueError, "instead of resnext50_32x4d"),
        ({"loss_name": "hinge", "groups": 2, "initializers": ["no"]}, ValueError, LOSS),
        ({"groups": 2, "initializers": ["no"]}, ValueError, "BasicBlock only supports groups=1 and base_width=64"),
        ({"width_per_group": 128}, ValueError, "BasicBlock only supports groups=1 and base_width=64"),
        ({"initializers": ["bn_one"]}, ValueError, "unknown initializer 'bn_one'; did you mean bn_ones?"),
        ({"initializers": "bn_ones"}, TypeError, r"initializers must be a list of names, got 'bn_ones'; write \["),
        ({"pretrained": "IMAGENET1K_V2"}, TypeError, "pretrained must be True or False, got 'IMAGENET1K_V2'"),
    ],
)
def test_the_first_of_several_mistakes_is_named(call, error, message):
    with pytest.raises(error, match=message):
        composer_resnet(**{"model_name": "resnet18", **call})


@pytest.mark.parametrize("initializers", [None, ["bn_ones"], ["LINEAR_LOG_CONSTANT_BIAS"]])
def test_binary_cross_entropy_without_its_bias_is_logged_before_the_network_is_built(initializers, caplog):
    with pytest.raises(ValueError, match="BasicBlock only"):
        composer_resnet("resnet18", groups=2, initializers=initializers, loss_name="binary_cross_entropy_with_logits")
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    expected = (
        "binary_cross_entropy_with_logits without the initializer linear_log_constant_bias can cost accuracy; add it"
    )
    assert warned == [expected] * (initializers != ["LINEAR_LOG_CONSTANT_BIAS"])


def test_pretrained_asks_for_v1_and_initializers_overwrite_it_in_their_order(monkeypatch):
    asked = {}

    def build(name, **config):
        asked.update(config, name=name)
        model = ResNet(BasicBlock, [1, 1, 1, 1])
        for tensor in model.state_dict().values():
            tensor.fill_(3)
        return model

    monkeypatch.setattr(builders, "get_model", build)
    state = composer_resnet("resnet18", pretrained=True, initializers=["bn_uniform", "bn_ones"]).module.state_dict()
    assert asked["name"] == "resnet18"
    assert asked["weights"] == "IMAGENET1K_V1"
    assert state["bn1.weight"].unique().tolist() == [1]
    assert state["bn1.bias"].unique().tolist() == [0]
    assert state["conv1.weight"].unique().tolist() == [3]
    composer_resnet("resnet18")
    assert asked["weights"] is None


def test_a_batch_goes_forward_to_logits_and_its_loss(tiny):
    logits = tiny(BATCH)
    assert torch.equal(logits, tiny.module(IMAGES))
    assert torch.equal(tiny.loss(logits, BATCH), nn.functional.cross_entropy(logits, LABELS))
    assert tiny.loss(logits, BATCH, reduction="none").shape == (4,)
    assert tiny.eval_forward(BATCH, logits) is logits
    assert torch.equal(tiny.eval_forward(BATCH), tiny(BATCH))


@pytest.mark.parametrize("tiny", PROBABILITIES, indirect=True)
def test_a_classifier_learns_a_batch_by_heart(tiny):
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.01, momentum=0.9)
    for _ in range(10):
        loss = tiny.loss(tiny(BATCH), BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert tiny.predict(IMAGES).argmax(1).tolist() == LABELS.tolist()


@pytest.mark.parametrize("tiny", PROBABILITIES, indirect=True)
def test_predict_gives_the_losss_probabilities_in_evaluation_mode_and_changes_nothing(tiny):
    tiny.module.layer1.eval()  # as one who freezes a stage
    modes = [module.training for module in tiny.modules()]
    before = copy.deepcopy(tiny.state_dict())
    probabilities = tiny.predict(IMAGES)
    assert [module.training for module in tiny.modules()] == modes
    assert all(torch.equal(before[key], tensor) for key, tensor in tiny.state_dict().items())
    logits = tiny.eval().module(IMAGES)
    expected = logits.softmax(1) if tiny.loss_name == "soft_cross_entropy" else 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(probabilities, expected)
    assert not probabilities.requires_grad


def test_predict_leaves_the_modes_as_they_were_after_an_error(tiny):
    with pytest.raises(RuntimeError):
        tiny.predict(torch.zeros(1, 2, 8, 8))
    assert all(module.training for module in tiny.modules())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(tiny, clone):
    copied = clone(tiny)
    assert torch.equal(copied.eval()(BATCH), tiny.eval()(BATCH))
    assert torch.equal(copied.loss(copied(BATCH), BATCH), tiny.loss(tiny(BATCH), BATCH))
    assert copied.num_classes == 3


def test_num_classes_follows_the_head():
    model = composer_resnet("resnet18", 7)
    model.module.reset_classifier(5)
    assert model.num_classes == 5


def test_metrics_without_torchmetrics_say_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ImportError, match=r"metrics need torchmetrics: pip install 'resnet-core\[composer\]'"):
        tiny.get_metrics()


# FACTS: He et al. section 4.2 with option B.
@pytest.mark.parametrize(("name", "parameters"), [("resnet_20", 272_474), ("resnet_56", 855_770)])
def test_cifar_networks_have_projections_and_their_parameters(name, parameters):
    model = composer_resnet_cifar(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(BATCH).shape == (4, 10)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_names_give_the_depth_and_the_arguments_their_order(depth):
    model = composer_resnet_cifar(f"resnet_{depth}", 7, ["linear_log_constant_bias"])
    kernels = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(kernels) + 1 == depth  # and the head
    assert model.num_classes == 7
    assert model.module.fc.bias.tolist() == pytest.approx([-1.9459101] * 7)  # -log(7)
    assert model.loss_name == "soft_cross_entropy"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet_9",
            "resnet_9 is not supported: .* not one of the paper's 6n.2 networks; the smallest of those is resnet_20",
        ),
        ("resnet20", r"model_name must be one of \['resnet_20', .* 'resnet_110'\] instead of resnet20\."),
    ],
)
def test_unknown_cifar_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        composer_resnet_cifar(name)


def test_importing_the_classifier_imports_neither_composer_nor_torchmetrics(tmp_path):
    for name in ("composer", "torchmetrics"):
        package(tmp_path, name, BROKEN)
    ran = subprocess.run(
        [sys.executable, "-c", "import resnet_core"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr


def with_composer(monkeypatch, folder, source):
    package(folder, "composer", source)
    for name in ("composer", "composer.models", "resnet_core.classifier.composer"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what is imported in its place is taken out again
        del sys.modules[name]
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("source", ["", BROKEN, "import not_installed"])
def test_a_composer_that_does_not_import_is_logged_and_done_without(monkeypatch, tmp_path, caplog, source):
    with_composer(monkeypatch, tmp_path, source)
    model = composer_resnet("resnet18", 3)
    assert type(model) is Classifier
    assert model(BATCH).shape == (4, 3)
    assert "the installed package composer has no usable ComposerModel" in caplog.text


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_where_composer_is_installed_the_classifier_is_a_composer_model(monkeypatch, tmp_path, clone):
    with_composer(monkeypatch, tmp_path, "")
    (tmp_path / "composer" / "models.py").write_text(
        "from torch import nn\n"
        "class ComposerModel(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.logger = None\n"
    )
    for build, name in ((composer_resnet, "resnet18"), (composer_resnet_cifar, "resnet_20")):
        model = build(name, 3)
        assert isinstance(model, Classifier)
        assert isinstance(model, sys.modules["composer.models"].ComposerModel)
        assert model.logger is None
        assert torch.equal(clone(model).eval()(BATCH), model.eval()(BATCH))
