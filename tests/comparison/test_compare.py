"""Two networks compared rung by rung, whatever their names, and the first place where they differ."""

import copy
import json
import re
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

import resnet_core
from parity.drop_in import images as random_images
from parity.patients.plants import PLANTS
from resnet_core.comparison.climb import INITIALISATIONS
from resnet_core.comparison.compare import ALL_RUNGS, DEFAULT_RUNGS, compare
from resnet_core.comparison.diagnosis import is_healthy, name_of
from resnet_core.comparison.operations import fingerprint
from resnet_core.comparison.pair import align
from resnet_core.comparison.rungs import LOGITS, SLOW, judge
from resnet_core.comparison.structure import structure_of
from resnet_core.comparison.trace import trace
from resnet_core.models.backbone import has_small_stem
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

images = partial(random_images, size=32)


def tiny(block=Bottleneck, seed=0, **config):
    torch.manual_seed(seed)
    return ResNet(block, [1, 2, 1, 1], num_classes=7, **config)


def small():
    """A network with few weights, for what does not depend on the kind of block."""
    torch.manual_seed(0)
    return CifarResNet(1, 7)


def torchvisions(block, seed=0):
    torch.manual_seed(seed)
    theirs = torchvision.models.resnet
    return theirs.ResNet(getattr(theirs, block.__name__), [1, 2, 1, 1], num_classes=7)


class Renamed(nn.Module):
    """A ResNet of one Bottleneck a stage with its own names, shortcut first, mean for pooling."""

    def __init__(self, source, numbers=(1, 2, 3)):
        super().__init__()
        source = copy.deepcopy(source)
        self.first = nn.Sequential(source.conv1, source.bn1, nn.ReLU(), source.maxpool)
        self.units = nn.ModuleList(
            Unit(block, numbers) for stage in (1, 2, 3, 4) for block in getattr(source, f"layer{stage}")
        )
        self.head = source.fc

    def forward(self, x):
        x = self.first(x)
        for unit in self.units:
            x = unit(x)
        return self.head(x.mean((2, 3)))


class Unit(nn.Module):
    def __init__(self, block, numbers):
        super().__init__()
        self.skip = block.downsample
        self.c, self.n = nn.ModuleList(), nn.ModuleList()
        for number in numbers:
            self.c.append(getattr(block, f"conv{number}"))
            self.n.append(getattr(block, f"bn{number}"))

    def forward(self, x):
        skipped = self.skip(x)
        for number, (c, n) in enumerate(zip(self.c, self.n, strict=True)):
            x = n(c(x))
            x = x.relu() if number < len(self.c) - 1 else (skipped + x).relu()
        return x


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_equal_networks_are_equal_on_every_rung(block):
    result = compare(tiny(block), torchvisions(block, seed=5), images())
    assert result, result
    statuses = {rung.name: rung.status for rung in result.rungs}
    assert statuses.pop("seeded initialisation") == "not run"
    assert set(statuses.values()) == {"equal"}
    assert list(statuses) == [name for name in DEFAULT_RUNGS if name != "seeded initialisation"]
    assert result.first_divergence is None
    assert result.likely_cause is None
    assert not result.renamed


def test_names_do_not_matter():
    result = compare(Renamed(tiny(seed=3)), tiny(), images())
    assert result, result
    statuses = {rung.name: rung.status for rung in result.rungs}
    assert statuses["names and shapes"] == "equal"
    assert result.renamed["units.0.c.0"] == "layer1.0.conv1"
    assert result.renamed["units.0.skip.0"] == "layer1.0.downsample.0"
    assert result.renamed["units.4.n.2"] == "layer4.0.bn3"
    assert len(result.renamed) == len(
        [m for m in tiny().modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    )


def test_branches_that_start_silent_are_compared_as_well():
    silent = partial(tiny, BasicBlock, zero_init_residual=True)
    assert compare(silent, silent, images(), diagnosis_seconds=0)
    result = compare(silent(), Renamed(silent(), numbers=(1, 2)), images(), diagnosis_seconds=0)
    assert result, result

    wrong = silent()
    wrong.layer2[1].conv1.dilation = wrong.layer2[1].conv1.padding = (2, 2)
    assert compare(wrong, silent(), images(), diagnosis_seconds=0).first_divergence == "layer2.1.conv1"


def test_neither_network_is_changed():
    a, b = tiny(), torchvisions(Bottleneck, seed=1)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (a, b)]
    compare(a, b, images())
    for model, kept in zip((a, b), before, strict=True):
        assert model.training
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "place", "cause"),
    [
        (partial(tiny, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)), "bn1", "BatchNorm eps 1e-3"),
        (partial(tiny, stride_in_1x1=True), "layer2.0.conv1", "stride on the first 1x1"),
        (lambda: Renamed(tiny(stride_in_1x1=True)), "layer2.0.conv1", "stride on the first 1x1"),
    ],
)
def test_the_first_divergence_and_its_cause_are_named(wrong, place, cause):
    result = compare(wrong(), tiny(), images())
    assert not result
    assert result.first_divergence == place
    assert result.likely_cause.startswith(cause)
    assert place in str(result)
    assert cause in str(result)
    assert json.loads(result.to_json())["first_divergence"] == place


def test_a_mistake_that_shows_only_in_training_is_found():
    result = compare(tiny(norm_layer=partial(nn.BatchNorm2d, momentum=0.9)), tiny(), images())
    differing = {rung.name for rung in result.rungs if not rung.passed}
    assert differing == {"BatchNorm statistics"}
    assert result.likely_cause.startswith("BatchNorm momentum 0.9")


def test_shapes_that_differ_are_named_and_the_rest_not_run():
    result = compare(ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7), tiny(), images())
    assert not result
    assert "layer2.1.conv1" in result.rungs[0].detail
    assert {rung.status for rung in result.rungs[2:]} == {"not run"}
    assert result.likely_cause.startswith("one block too few in layer2")
    assert result.rungs[0].detail.startswith(
        "without counterpart: the second's layer2.1.conv1 (Conv2d weight [128, 512"
    )


def test_a_mistake_that_rebuilds_a_network_keeps_its_stem():
    for small in (False, True):
        model = resnet_core.Backbone(Bottleneck, [1, 2, 1, 1], num_classes=7, small_images=small)
        assert has_small_stem(PLANTS["one block too few in layer2"](model)) == small


def test_another_model_is_recognised_by_its_shapes():
    result = compare(resnet_core.resnet18(), resnet_core.resnet34(), images(), diagnosis_seconds=0.001)
    assert result.likely_cause == "the first network has the convolutions of a resnet18, the second of a resnet34"


def test_functions_are_compared_from_their_seed_on():
    result = compare(tiny, partial(torchvisions, Bottleneck), images())
    assert result, result
    assert {rung.status for rung in result.rungs} == {"equal"}


def built(change):
    """A function that builds a network whose weights `change` has changed, drawing its own random numbers."""

    def build():
        model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7)
        change(model)
        return model

    return build


@pytest.mark.parametrize(
    ("change", "status", "cause"),
    [
        (lambda model: model.apply(draw_again), "alike", None),
        (lambda model: torch.rand(1), "alike", None),
        *((initialise, "differs", name) for name, initialise in INITIALISATIONS.items()),
        (lambda model: nn.init.constant_(model.fc.bias, 0.1), "differs", None),
    ],
)
def test_another_initialisation_is_reported_and_named(change, status, cause):
    torch.manual_seed(7)
    result = compare(built(change), built(lambda model: None), images())
    found = {rung.name: rung.status for rung in result.rungs}
    assert found.pop("seeded initialisation") == status, result
    assert set(found.values()) == {"equal"}
    assert bool(result) == (status == "alike")
    assert result.likely_cause is None if cause is None else result.likely_cause.startswith(cause)
    assert result.first_divergence is None


def draw_again(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def test_compiled_and_exported_the_first_network_computes_what_the_second_does():
    layers = (
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
    )
    result = compare(nn.Sequential(*layers), nn.Sequential(*layers), images(), rungs=SLOW)
    assert result, result
    statuses = {rung.name: rung.status for rung in result.rungs}
    assert statuses["torch.compile"] in ("equal", "rounding")
    assert statuses["torch.export"] == "equal"
    assert set(statuses) == set(SLOW) == set(ALL_RUNGS) - set(DEFAULT_RUNGS)


def test_what_cannot_be_captured_whole_differs_there():
    class Fickle(nn.Module):
        """Looks at its values, which one graph cannot."""

        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            return self.network(x) if x.sum().item() > -1e9 else x

    result = compare(Fickle(), small(), images(), rungs=["logits", "torch.compile", "torch.export"])
    logits, *captured = result.rungs
    assert logits.status == "equal"
    assert {rung.status for rung in captured} == {"differs"}
    assert all("the first network raises" in rung.detail for rung in captured)
    assert result.likely_cause is None


def test_a_rung_that_no_network_can_climb_proves_nothing():
    class Float32Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            if x.dtype is torch.bfloat16:
                raise NotImplementedError("no bfloat16\nat all")
            return self.network(x)

    (rung,) = compare(small(), Float32Only(), images(), rungs=["bfloat16"]).rungs
    assert rung.status == "differs"
    assert rung.detail.startswith("the second network raises NotImplementedError: no bfloat16, at ")
    result = compare(Float32Only(), Float32Only(), images(), rungs=["bfloat16"])
    assert result.rungs[0].status == "not run"
    assert not result


def test_float64_separates_rounding_from_difference():
    class Reordered(nn.Module):
        """The same function in another order of additions."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            features = self.network.forward_features(x)
            return self.network.fc(features.flatten(2).flip(2).cumsum(2)[..., -1] / features[0, 0].numel())

    result = compare(Reordered(tiny()), tiny(), images(size=96))
    assert result, result
    assert "rounding" in {rung.status for rung in result.rungs}


class Around(nn.Module):
    """A network that is wrong in only one way."""

    def __init__(self, network, forward):
        super().__init__()
        self.network, self.change = network, forward

    def forward(self, x):
        return self.change(self, x)


def slightly_off(condition):
    return lambda self, x: self.network(x) * (1.01 if condition(self, x) else 1)


def half_gradient(self, x):
    logits = self.network(x)
    return logits.detach() / 2 + logits / 2


LOW = {"channels_last", "bfloat16", "float16"}
ONLY_THERE = {
    "logits": (slightly_off(lambda self, x: not self.training), {"activations", "other shapes", *LOW}),
    "other shapes": (slightly_off(lambda self, x: len(x) == 1), set()),
    "training logits": (
        slightly_off(lambda self, x: self.training),
        {"loss and gradients", "3 optimizer steps"},
    ),
    "loss and gradients": (half_gradient, {"3 optimizer steps"}),
    "channels_last": (slightly_off(lambda self, x: x.is_contiguous(memory_format=torch.channels_last)), set()),
    "bfloat16": (lambda self, x: self.network(x) * (2 if x.dtype is torch.bfloat16 else 1), set()),
    "float16": (lambda self, x: self.network(x) * (2 if x.dtype is torch.float16 else 1), set()),
}


@pytest.mark.parametrize("name", ONLY_THERE)
def test_each_rung_finds_what_is_wrong_only_there(name):
    forward, implied = ONLY_THERE[name]
    result = compare(Around(small(), forward), small(), images(), diagnosis_seconds=0)
    differing = {rung.name for rung in result.rungs if not rung.passed}
    assert {name} <= differing <= {name, *implied}, result


def test_weights_that_move_differently_in_training_are_found_only_by_the_optimizer_steps():
    class Slower(nn.Module):
        """The same gradients, of which one is scaled when an optimizer looks at it a second time."""

        def __init__(self):
            super().__init__()
            self.network, self.seen = small(), 0
            self.network.fc.bias.register_hook(self.later)

        def later(self, gradient):
            self.seen += 1
            return gradient if self.seen == 1 else gradient * 2

        def forward(self, x):
            return self.network(x)

        def __deepcopy__(self, memo):
            copied = Slower()
            copied.load_state_dict(self.state_dict())
            return copied.train(self.training).to(next(self.parameters()).dtype)

    result = compare(Slower(), small(), images(), diagnosis_seconds=0)
    assert {rung.name for rung in result.rungs if not rung.passed} == {"3 optimizer steps"}, result


@pytest.mark.parametrize("momentum", [None, 1.0, 0.9, 0.11])
def test_every_momentum_shows_in_the_statistics(momentum):
    wrong = tiny(norm_layer=partial(nn.BatchNorm2d, momentum=momentum))
    rungs = ["logits", "training logits", "BatchNorm statistics"]
    result = compare(wrong, tiny(), images(), rungs=rungs, diagnosis_seconds=0)
    assert {rung.name for rung in result.rungs if not rung.passed} == {"BatchNorm statistics"}


def test_an_error_may_be_ten_times_the_references():
    exact = {LOGITS: torch.zeros(2, dtype=torch.float64) + 1}
    theirs = {LOGITS: torch.tensor([1.0, 1.001])}
    found = [judge("logits", {LOGITS: torch.tensor([1.0, 1 + off])}, theirs, lambda: exact) for off in (9e-3, 11e-3)]
    assert [rung.status for rung in found] == ["rounding", "differs"]
    lost = judge("logits", {LOGITS: torch.ones(2)}, {LOGITS: torch.tensor([1.0, float("nan")])}, lambda: exact)
    assert lost.status == "differs"
    assert judge("logits", {LOGITS: torch.ones(2)}, {}, lambda: exact).status == "differs"
    assert judge("logits", {}, {}, lambda: exact).status == "not run"


class Scaled(nn.Module):
    """A BatchNorm written by hand, with names of its own, and a scalar that learns."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x):
        return torch.nn.functional.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training, 0.1, 1e-5)


class ScalarGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.gate = small(), Gate()

    def forward(self, x):
        return self.gate(self.network(self.network.conv1.weight.sum() * 0 + x))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.scale


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 7)

    def forward(self, x):
        return self.fc(self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3)))


def grown_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small()

        def forward(self, x):
            x -= 0.5
            return self.network(x)

    return InPlace()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (partial(tiny, norm_layer=Scaled), tiny),
        (ScalarGate, ScalarGate),
        (Twice, Twice),
        (grown_in_place, grown_in_place),
        (
            partial(ResNet, Bottleneck, [1, 1, 1, 1], num_classes=1),
            partial(ResNet, Bottleneck, [1, 1, 1, 1], num_classes=1),
        ),
        (lambda: nn.DataParallel(small()), small),
        (lambda: torch.compile(small()), small),
    ],
    ids=["norm by hand", "scalar", "called twice", "in place", "one class", "DataParallel", "compiled"],
)
def test_healthy_networks_of_other_styles_are_equal(a, b):
    inputs = images()
    result = compare(a(), b(), inputs, diagnosis_seconds=0)
    assert result, result
    assert torch.equal(inputs, images())


def test_the_network_that_a_function_returns_is_not_changed():
    given = small()
    before = copy.deepcopy(given.state_dict())
    compare(lambda: given, small, images(), diagnosis_seconds=0)
    assert given.training
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_other_shapes_are_never_equal_whatever_is_asked():
    for rungs in (["logits"], ["parameters", "bfloat16"], []):
        assert not compare(tiny(BasicBlock), tiny(Bottleneck), images(), rungs=rungs, diagnosis_seconds=0)


def test_parameters_that_one_network_lacks_are_named():
    biased = tiny()
    biased.conv1.bias = nn.Parameter(torch.zeros(64))
    for a, b, owner in ((lambda: biased, tiny, "first"), (tiny, lambda: biased, "second")):
        rungs = {rung.name: rung for rung in compare(a, b, images(), diagnosis_seconds=0).rungs}
        assert rungs["seeded initialisation"].detail == f"conv1.bias: only the {owner} network has one"
        assert rungs["loss and gradients"].detail == f"gradient of conv1.bias: only the {owner} network has one"


def test_weights_that_stand_beside_layers_are_compared_as_well():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.w = small(), nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x):
            return self.network(torch.nn.functional.conv2d(x, self.w))

    result = compare(Bare(), small(), images(), diagnosis_seconds=0)
    assert re.search(r"the first's test_compare.py:\d+ \(Conv2d weight \[3, 3, 1, 1\]\)$", result.rungs[0].detail)
    assert not result
    assert compare(Bare(), Bare(), images(), diagnosis_seconds=0)


def test_layers_in_a_plain_list_are_seen_and_named():
    class Forgotten(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.fc = [nn.Conv2d(3, 8, 3)], nn.Linear(8, 7)

        def forward(self, x):
            return self.fc(self.blocks[0](x).mean((2, 3)))

    result = compare(Forgotten(), Forgotten(), images())
    assert re.search(r"test_compare.py:\d+ \(Conv2d .* that no module of the network holds", result.rungs[0].detail)
    assert not result


def test_networks_that_cannot_be_compared_are_refused_with_the_place_and_the_remedy():
    with pytest.raises(RuntimeError, match=r"the second network does not run on images of 2 x 1 x 32 x 32: "):
        compare(tiny(in_channels=1), tiny(), torch.randn(2, 1, 32, 32))
    for inputs in (images(batch=1), images() * float("nan")):
        with pytest.raises(ValueError, match="inputs must be finite and at least 2 images"):
            compare(tiny(), tiny(), inputs)
    with pytest.raises(TypeError, match=r"inputs must be a tensor of images \[N, C, H, W\], got a list"):
        compare(tiny(), tiny(), [images(), images()])


def test_what_differs_and_is_no_known_mistake_is_said():
    frozen = tiny()
    frozen.conv1.requires_grad_(False)
    frozen.unused = nn.Linear(2, 2)
    result = compare(frozen, tiny(), images())
    assert result.likely_cause.startswith("no operation differs on these images")
    assert "conv1.weight has requires_grad=False; weights that never run: unused" in result.likely_cause
    assert result.mistakes is None
    rungs = {rung.name: rung.detail for rung in result.rungs}
    assert rungs["parameters"].endswith("; never run: unused")
    assert rungs["loss and gradients"] == "gradient of conv1.weight: only the second network has one"
    swapped = compare(tiny(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)), Around(tiny(), half_gradient), images())
    assert swapped.likely_cause.startswith("BatchNorm eps 1e-3")
    restless = compare(
        Around(tiny(), lambda self, x: self.network(x) + torch.randn(())), tiny(), images(), diagnosis_seconds=2
    )
    assert restless.likely_cause.startswith("the first network is not deterministic in eval mode")


def test_assert_parity_shows_the_ladder():
    resnet_core.assert_parity(tiny(), torchvisions(Bottleneck), images())
    with pytest.raises(AssertionError, match=r"the networks differ\nrung .*(?s:.)*likely cause: BatchNorm eps 1e-3"):
        resnet_core.assert_parity(tiny(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)), tiny(), images())


def test_a_projection_is_not_matched_with_a_convolution_of_the_same_shape():
    runs = [trace(model.eval(), images()).operations for model in (Renamed(tiny()), tiny())]
    pairs, _, unmatched = align(*runs)
    paths = {one.path: other.path for one, other in pairs}
    assert not unmatched
    assert paths["units.0.skip.0"] == "layer1.0.downsample.0"
    assert paths["units.0.c.2"] == "layer1.0.conv3"


def test_fingerprints_match_up_to_float64_rounding_and_no_further():
    tensor = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert fingerprint(tensor).matches(fingerprint(tensor * (1 + 1e-12)))
    assert not fingerprint(tensor).matches(fingerprint(tensor * (1 + 1e-8)))
    assert not fingerprint(tensor).matches(fingerprint(tensor.flip(2)))
    assert not fingerprint(tensor).matches(fingerprint(tensor.flatten()))
    assert not fingerprint(tensor * float("nan")).matches(fingerprint(tensor * float("nan")))


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_network_is_recognised_as_healthy(name):
    def examined(network):
        return structure_of(trace(network.eval(), images(size=64), fingerprints=False))

    theirs = torchvision.models.get_model(name, num_classes=3)
    assert is_healthy(examined(theirs))
    assert name_of(examined(theirs)) == name
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert is_healthy(examined(theirs))
    theirs.conv1.padding = (0, 0)
    assert not is_healthy(examined(theirs))
    assert not is_healthy(examined(torchvision.models.vgg11()))


def test_anything_that_is_not_a_network_or_returns_no_tensor_is_refused():
    class Wrapped(nn.Module):
        def forward(self, x):
            return {"logits": x}

    with pytest.raises(TypeError, match="returns a dict, not a tensor"):
        compare(Wrapped(), tiny(), images())
    for what in (lambda: "a text", 7):
        with pytest.raises(TypeError, match=r"functions that build them, got a (str|int)"):
            compare(what, tiny(), images())
    with pytest.raises(ValueError, match="unknown rung 'logit'; did you mean logits"):
        compare(tiny(), tiny(), images(), rungs=["logit"])


def test_another_number_of_classes_is_named():
    result = compare(tiny(), ResNet(Bottleneck, [1, 2, 1, 1], num_classes=8), images(), diagnosis_seconds=0)
    assert "give both heads the same number of classes" in result.rungs[0].detail


def test_the_command_ends_with_0_for_equal_networks_and_1_for_different_ones(cli):
    same = cli("compare", "resnet18", "torchvision:resnet18", "--image-size", 32)
    assert same.returncode == 0, same.stderr
    other = cli("compare", "resnet18", "resnet34", "--image-size", 32, "--json", "--diagnosis-seconds", 0)
    assert other.returncode == 1, other.stderr
    assert json.loads(other.stdout)["equal"] is False
    wrong = cli("compare", "resnet18", "torchvision:resnet18", "--channels", 1)
    assert wrong.returncode == 2
    assert "the first network does not run on images of 2 x 1 x 64 x 64: " in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
