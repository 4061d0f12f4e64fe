"""`separate_relus`: each use of a ReLU a module of its own, the same bits."""

import pytest
import torch
import torchvision
from captum.attr import DeepLift
from torch import nn
from torch.nn import functional as F

import resnet_core
from resnet_core import separate_relus
from resnet_core.models.resnet import BasicBlock, Bottleneck


class WrittenByHand(nn.Module):
    """ReLUs as functions, as methods and in place, whose inputs are read again after they were overwritten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        self.relu(x)
        y = self.block(x) * 2
        y.add_(x, alpha=0.5)
        z = F.relu(input=y - 0.1) + F.relu(y - 0.2, inplace=True) + y
        torch.relu_(z)
        return (z + x.relu()).sub(1).relu_().mean((2, 3))


NETWORKS = {
    "basic": lambda: resnet_core.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4),
    "bottleneck": lambda: resnet_core.Backbone(Bottleneck, [1, 1, 1, 1], num_classes=4, small_images=True),
    "cifar": lambda: resnet_core.cifar_resnet20(),
    "torchvision": lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]),
    "by hand": WrittenByHand,
}


def outputs_and_gradients(network, images):
    outputs = network(images)
    gradients = torch.autograd.grad(outputs.square().sum(), network.parameters())
    return [outputs, *gradients]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_equal_to_the_bit(name, training):
    torch.manual_seed(0)
    network = NETWORKS[name]().train(training)
    images = torch.randn(2, 3, 32, 32)

    separate = separate_relus(network)

    assert separate.training == training
    assert separate.state_dict().keys() == network.state_dict().keys()
    for ours, theirs in zip(
        outputs_and_gradients(separate, images), outputs_and_gradients(network, images), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_relu_is_a_module_used_once_and_out_of_place(name):
    separate = separate_relus(NETWORKS[name]())
    called = [node.target for node in separate.graph.nodes if node.op == "call_module"]
    relus = {path for path, module in separate.named_modules() if isinstance(module, nn.ReLU)}
    assert sorted(path for path in called if path in relus) == sorted(relus)
    assert not any(separate.get_submodule(path).inplace for path in relus)
    assert not any(
        "relu" in str(node.target) or str(node.target).endswith("_")
        for node in separate.graph.nodes
        if node.op != "call_module"
    )


def test_names_say_which_use_it_is():
    names = dict(separate_relus(NETWORKS["bottleneck"]()).named_modules())
    assert {"relu", "layer1.0.relu", "layer1.0.relu_2", "layer1.0.relu_3"} <= names.keys()


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_captums_deeplift_attributes_the_logits_to_the_pixels():
    torch.manual_seed(0)
    network = separate_relus(NETWORKS["basic"]().eval())
    images, baseline = torch.randn(1, 3, 32, 32, requires_grad=True), torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        difference = (network(images) - network(baseline))[0, 1]

    attributions = DeepLift(network).attribute(images, baseline, target=1)

    # DeepLift's attributions sum to the difference of the outputs (Shrikumar et al. 2017, section 3.1).
    assert attributions.sum().item() == pytest.approx(difference.item(), rel=1e-3)


def test_a_network_that_branches_on_its_input_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branching .*; give a network whose forward does the"):
        separate_relus(Branching())
