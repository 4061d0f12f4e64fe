"""Kinds of networks that people brought, and what is right to say of each; and that no sentence contradicts a rung."""

import random
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from parity.patients.people import PEOPLE, Basic, Cifar, Net, SmallStem
from parity.patients.scoped import FAMILIES, build, draw
from resnet_core.comparison.compare import compare
from tests.comparison.test_people import REFERENCES

RUNGS = ("names and shapes", "logits", "training logits", "loss and gradients", "BatchNorm statistics")


def images(seed=0):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


class BiasedBlock(Basic):
    bias = True


class BiasedButStem(Net):
    block = BiasedBlock


class LinearEnd(Basic):
    def forward(self, x):
        return self.branch(x) + self.skip(x)


class LinearEnds(Cifar):
    block = LinearEnd


class Direct(Basic):
    """Runs its shortcut's modules without calling them, and its first convolution by its weight."""

    def forward(self, x):
        y = F.relu(self.norm_one(F.conv2d(x, self.one.weight, None, self.one.stride, 1)))
        y = self.norm_two.forward(self.two.forward(y))
        for layer in self.skip.children():
            x = layer.forward(x)
        return F.relu(y + x)


class Directly(Net):
    block = Direct


class LogProbabilities(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)


class Dropping(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.2), self.head)


class Casting(Net):
    def forward(self, x):
        return super().forward(x.float())


class Pad(nn.Module):
    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


class ZerosBehind(Cifar):
    def __init__(self):
        super().__init__()
        for row in self.rows[1:]:
            row.skip = Pad()


class Normalising(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.2, 0.3]).reshape(1, 3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


class Fresh(Net):
    def forward(self, x):
        return super().forward(nn.Conv2d(3, 3, 1)(x))


class Wide(Cifar):
    widths = (32, 64, 128)


class Training(Net):
    """Holds what a training script keeps in its network: a loss with weights, and a lock that Python cannot copy."""

    def __init__(self):
        super().__init__()
        self.loss, self.lock = nn.CrossEntropyLoss(weight=torch.ones(10)), threading.Lock()


class Halving(Net):
    def forward(self, x):
        return super().forward(x.half().float())


class Autocasting(Net):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def torchvisions(block=torchvision.models.resnet.BasicBlock, **config):
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, **config)


def two_mistakes():
    network = torchvisions(torchvision.models.resnet.Bottleneck)
    network.relu = nn.Identity()
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    return network


class NoStemReLU(torchvision.models.ResNet):
    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(self.bn1(self.conv1(x)))))))
        return self.fc(self.avgpool(x).flatten(1))


def normed():
    network = Net()
    nn.utils.weight_norm(network.stem[0])
    return network


def no_stem_relu():
    return NoStemReLU(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


EPS = partial(torchvisions, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
BASIC, BOTTLE = REFERENCES["BasicBlock"], REFERENCES["Bottleneck"]
CASES = {
    "CIFAR stem": (SmallStem, BASIC, ("3x3 stem of stride 1", "no max-pool")),
    "some biases": (BiasedButStem, BASIC, ("biased convolutions, all but the stem's",)),
    "an edited reference": (Net, EPS, ("BatchNorm eps 1e-3",)),
    "CIFAR reference": (LinearEnds, REFERENCES["cifar B"], ("no ReLU after the addition",)),
    "without calls": (Directly, BASIC, ()),
    "two in a Bottleneck": (two_mistakes, BOTTLE, ("no stem ReLU", "no stride in layer4")),
    "log-softmax": (LogProbabilities, BASIC, ("log-softmax in the output",)),
    "another probability": (Dropping, BASIC, ("dropout 0.2 before the head",)),
    "a cast": (Casting, BASIC, ()),
    "zeros of shortcut A": (ZerosBehind, REFERENCES["cifar A"], ("zeros of shortcut A behind the channels",)),
    "swapped": (BASIC, no_stem_relu, ("no stem ReLU",)),
    "in order": (no_stem_relu, BASIC, ("no stem ReLU",)),
    "normalised": (Normalising, BASIC, ("normalised input",)),
    "normalised twice": (Normalising, Normalising, ()),
    "twice as wide": (Wide, None, ("stem of 32 channels", "stage twice as wide")),
    "a training script's": (Training, BASIC, ()),
    "weight_norm": (normed, BASIC, ("convolutions with computed weights in the stem",)),
    "DataParallel": (lambda: nn.DataParallel(Net()), BASIC, ()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_what_people_bring_is_explained(name):
    first, second, mistakes = CASES[name]
    result = compare(first, second, images(), rungs=(*RUNGS, "bfloat16"))
    assert bool(result) == (not mistakes), result
    assert (result.mistakes or ()) == mistakes
    assert [each.name for each in result.differences] == list(mistakes)
    for each in result.differences:
        assert each.line is None or each.file.endswith(".py")
    consistent(result)
    if name in ("an edited reference", "swapped"):
        assert result.likely_cause.startswith("the first network is a healthy ")


def test_a_difference_names_the_users_line_and_the_repair():
    (found,) = compare(LogProbabilities, BASIC, images(), rungs=RUNGS).differences
    assert (found.operation, found.ours, found.theirs) == ("act", "log-softmax", "nothing")
    assert found.file == __file__
    assert "log_softmax" in Path(__file__).read_text().splitlines()[found.line - 1]
    assert found.repair == "remove the log-softmax"


def test_published_networks_are_named():
    kuangliu = compare(PEOPLE["kuangliu"].network, BASIC, images(), rungs=RUNGS).likely_cause
    assert kuangliu.startswith("3x3 stem of stride 1 and no max-pool and the head's pool fixed to 4x4 pixels")
    eighteen = partial(torchvision.models.resnet18, num_classes=10)

    def se():
        network = eighteen()
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for block in stage:
                block.bn2 = nn.Sequential(block.bn2, Gate(block.bn2.num_features))
        return network

    cause = compare(se, eighteen, images(), rungs=["logits"]).likely_cause
    assert cause.endswith("this is SE-resnet18 (Hu et al. 2018, arXiv:1709.01507)")


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Linear(channels, 8), nn.Linear(8, channels)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


@pytest.mark.parametrize(("network", "asked"), [(Halving, "float16"), (Autocasting, "bfloat16 by autocast")])
def test_lower_precision_is_said_with_its_line(network, asked):
    result = compare(network, BASIC, images(), rungs=["logits"])
    assert result.likely_cause.startswith(f"a network asks for {asked} (")
    assert ".py:" in result.likely_cause
    consistent(result)


def test_layers_made_in_forward_are_named_as_what_they_are():
    cause = compare(Fresh, BASIC, images(), rungs=RUNGS).likely_cause
    assert "random and untrained" in cause
    assert "dropout" not in cause
    assert "test_field.py:" in cause


def consistent(result):
    """No sentence says that two networks are equal where a rung differs, or that they differ where none does."""
    cause, passed = result.likely_cause or "", {rung.name: rung.passed for rung in result.rungs}
    if result:
        assert (result.likely_cause, result.mistakes, result.differences) == (None, None, ())
        return
    assert cause
    assert "the doctor failed" not in cause
    assert result.mistakes != ()
    assert "computes what the reference does" not in cause
    if "no operation differs" in cause:
        assert all(passed[name] for name in ("names and shapes", "logits", "training logits"))
        assert not result.differences
    if "computes exactly what this network does" in cause:
        assert result.mistakes == tuple(each.name for each in result.differences)
        assert all(name in cause for name in result.mistakes[:8])
    judged = {each.network for each in result.differences}
    assert judged <= ({"second"} if "so the second is judged" in cause else {"first", "second"})
    assert "second" not in judged or "neither network is a healthy" in cause or "so the second is judged" in cause


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("seed", range(8))
def test_no_sentence_contradicts_a_rung(seed):
    generator = random.Random(seed)
    networks = [person.network for person in PEOPLE.values() if person.network.channels == 3]
    networks += [partial(build, family, draw(seed, family, 2)) for family in FAMILIES.values()]
    networks += REFERENCES.values()
    first, second = generator.choice(networks), generator.choice(networks)
    consistent(compare(first, second, images(seed), rungs=RUNGS))
