"""ResNets as people write them: small networks of our own with the faults that public repositories have.

Each class below has the faults of the file that its comment names, and no line of it. PEOPLE holds what is right to say
of each: the reference that it is nearest to, and its differences from that reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A healthy ResNet, of which people write some parts differently.


def conv(before: int, after: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=bias)


class Basic(nn.Module):
    expansion, bias = 1, False

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = width * self.expansion
        self.make_branch(before, width, stride)
        self.skip = self.shortcut(before, after, stride) if stride > 1 or before != after else nn.Identity()

    def make_branch(self, before: int, width: int, stride: int) -> None:
        self.one, self.norm_one = conv(before, width, 3, stride, self.bias), nn.BatchNorm2d(width)
        self.two, self.norm_two = conv(width, width, 3, 1, self.bias), nn.BatchNorm2d(width)

    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(before, after, 1, stride, self.bias), nn.BatchNorm2d(after))

    def branch(self, x: Tensor) -> Tensor:
        return self.norm_two(self.two(F.relu(self.norm_one(self.one(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.skip(x))


class Bottle(Basic):
    expansion = 4

    def make_branch(self, before: int, width: int, stride: int) -> None:
        self.one, self.norm_one = conv(before, width, 1, 1, self.bias), nn.BatchNorm2d(width)
        self.two, self.norm_two = conv(width, width, 3, stride, self.bias), nn.BatchNorm2d(width)
        self.three, self.norm_three = conv(width, 4 * width, 1, 1, self.bias), nn.BatchNorm2d(4 * width)

    def branch(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_one(self.one(x)))
        x = F.relu(self.norm_two(self.two(x)))
        return self.norm_three(self.three(x))


class Net(nn.Module):
    block: type[nn.Module] = Basic
    channels, widths, strides = 3, (64, 128, 256, 512), (1, 2, 2, 2)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = self.make_stem()
        befores = [self.widths[0], *(width * self.block.expansion for width in self.widths)]
        self.rows = nn.Sequential(*map(self.block, befores, self.widths, self.strides))
        self.head = nn.Linear(befores[-1], num_classes)

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(self.channels, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))

    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.rows(self.stem(x))))


class SmallStem(Net):
    """For images of 32 pixels."""

    def make_stem(self) -> nn.Sequential:
        width = self.widths[0]
        return nn.Sequential(conv(self.channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())


class Cifar(SmallStem):
    """Section 4.2 of the paper, one block in each stage."""

    widths, strides = (16, 32, 64), (1, 2, 2)


# labmlai/annotated_deep_learning_paper_implementations, labml_nn/resnet/__init__.py


class AnnotatedBlock(Basic):
    bias = True


class Annotated(Net):
    block, strides = AnnotatedBlock, (2, 1, 1, 1)

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 7, 2, bias=True), nn.BatchNorm2d(64))


# kuangliu/pytorch-cifar, models/resnet.py


class FixedPool(SmallStem):
    def pool(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4)
        return x.view(x.size(0), -1)


# kuangliu/pytorch-cifar, models/preact_resnet.py: no norm of the stem, none before the head


class PreActivated(Basic):
    def make_branch(self, before: int, width: int, stride: int) -> None:
        self.norm_one, self.one = nn.BatchNorm2d(before), conv(before, width, 3, stride)
        self.norm_two, self.two = nn.BatchNorm2d(width), conv(width, width, 3)

    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return conv(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm_one(x))
        x = x if isinstance(self.skip, nn.Identity) else self.skip(activated)
        return self.two(F.relu(self.norm_two(self.one(activated)))) + x


class PreActivation(SmallStem):
    block = PreActivated

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 3))


# weiaicunzai/pytorch-cifar100, models/preactresnet.py: biases, the projection reads the block's input


class PreActivatedAside(PreActivated):
    def make_branch(self, before: int, width: int, stride: int) -> None:
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(inplace=False),
            conv(before, width, 3, stride, bias=True),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, bias=True),
        )

    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return conv(before, after, 1, stride, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.skip(x)


class PreActivationAside(SmallStem):
    block = PreActivatedAside

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 3, bias=True), nn.BatchNorm2d(64), nn.ReLU())


# bearpaw/pytorch-classification, models/cifar/preresnet.py: with the last norm, an average pool of 8x8


class PreActivatedCifar(PreActivated):
    def forward(self, x: Tensor) -> Tensor:
        out = self.one(F.relu(self.norm_one(x)))
        return self.two(F.relu(self.norm_two(out))) + self.skip(x)


class PreActivationCifar(Cifar):
    block = PreActivatedCifar

    def __init__(self) -> None:
        super().__init__()
        self.last_norm = nn.BatchNorm2d(64)

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 16, 3))

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.last_norm(x)), 8).flatten(1)


# weiaicunzai/pytorch-cifar100, models/senet.py: linear layers in the gate, biases, a ReLU before the gate


class GatedBlock(Basic):
    bias = True

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__(before, width, stride)
        self.gate = nn.Sequential(nn.Linear(width, width // 16), nn.ReLU(), nn.Linear(width // 16, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.branch(x))
        weights = self.gate(out.mean((2, 3)))[:, :, None, None]
        return F.relu(out * weights + self.skip(x))


class Gated(SmallStem):
    block = GatedBlock

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 3, bias=True), nn.BatchNorm2d(64), nn.ReLU())


# kuangliu/pytorch-cifar, models/senet.py: 1x1 convolutions in the gate


class GatedByConvolutions(Basic):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__(before, width, stride)
        self.squeeze, self.excite = nn.Conv2d(width, width // 16, 1), nn.Conv2d(width // 16, width, 1)

    def branch(self, x: Tensor) -> Tensor:
        out = super().branch(x)
        weights = F.relu(self.squeeze(F.avg_pool2d(out, out.size(2))))
        return out * torch.sigmoid(self.excite(weights))


class SqueezeAndExcitation(SmallStem):
    block = GatedByConvolutions


# aladdinpersson/Machine-Learning-Collection, ML/Pytorch/CNN_architectures/pytorch_resnet.py: its softmax, which that
# file calls on the number 1, here on the logits


class CopyingBlock(Bottle):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x.clone()
        x = self.branch(x)
        x += self.skip(shortcut)
        return F.relu(x)


class Probabilities(Net):
    block = CopyingBlock

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(super().forward(x))


# JayPatwardhan/ResNet-PyTorch, ResNet/ResNet.py, its Bottleneck: biases everywhere but in the stem


class BiasedBottle(Bottle):
    bias = True


class BiasedBlocks(Net):
    block = BiasedBottle


# The same file, its basic block: one norm for both convolutions (the first is never used), biased projections


class OneNormBlock(Basic):
    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(before, after, 1, stride, bias=True), nn.BatchNorm2d(after))

    def branch(self, x: Tensor) -> Tensor:
        return self.norm_two(self.two(F.relu(self.norm_two(self.one(x)))))


class OneNorm(Net):
    block = OneNormBlock


# akamaster/pytorch_resnet_cifar10, resnet.py: healthy


class PaddedByHand(Basic):
    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return Every(stride, (after - before) // 2)


class Every(nn.Module):
    def __init__(self, stride: int, zeros: int) -> None:
        super().__init__()
        self.stride, self.zeros = stride, zeros

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros), "constant", 0)


class PaperCifar(Cifar):
    block = PaddedByHand

    def pool(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, (x.size(2), x.size(3)))
        return x.view(x.size(0), -1)


# yunjey/pytorch-tutorial, tutorials/02-intermediate/deep_residual_network/main.py: 3x3 projections, an 8x8 pool


class WideProjection(Basic):
    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(before, after, 3, stride), nn.BatchNorm2d(after))


class TutorialCifar(Cifar):
    block = WideProjection

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(8)

    def pool(self, x: Tensor) -> Tensor:
        x = self.average(x)
        return x.view(x.size(0), -1)


# matin-ghorbani/ResNet-from-Scratch, ResNet.py: a ReLU before the addition and one after it, biases everywhere


class TwiceRectified(BiasedBottle):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(self.branch(x)) + self.skip(x))


class BiasedStem(Net):
    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 7, 2, bias=True), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


class Twice(BiasedStem):
    block = TwiceRectified


# dittohed/resnet-from-scratch, resnet.py: biases everywhere


class BiasedEverywhere(BiasedStem):
    block = BiasedBottle


# joshua-paperspace/ResNet-PyTorch, resnet.py: no ReLU after the addition


class LinearEnd(Basic):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.skip(x)


class LinearEnds(Net):
    block = LinearEnd


# FrancescoSaverioZuppichini/ResNet, resnet.py: the branch ends in a ReLU, the sum does not; LeakyReLU in the stem


class RectifiedBranch(Basic):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x)) + self.skip(x)


class LeakyStem(Net):
    block = RectifiedBranch

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.LeakyReLU(), nn.MaxPool2d(3, 2, 1))


# KellerJordan/ResNet-PyTorch-CIFAR10, model.py: dropout in each block, projections without norm, biases, strides that
# the blocks are not given


class DroppingBlock(Basic):
    bias = True

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__(before, width, 1)
        self.dropout = nn.Dropout()

    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return conv(before, after, 1, stride, bias=True)

    def branch(self, x: Tensor) -> Tensor:
        return self.dropout(super().branch(x))


class Dropping(Cifar):
    block = DroppingBlock

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(conv(3, 16, 3, bias=True), nn.BatchNorm2d(16), nn.ReLU())


# hszhao/semseg, model/resnet.py: a deep stem, 128 channels wide (C)


class DeepStem(Net):
    block = Bottle

    def __init__(self) -> None:
        super().__init__()
        self.rows[0] = Bottle(128, 64, 1)

    def make_stem(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
            layers += [conv(before, after, 3, stride), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1))


# d2l-ai/d2l-en, chapter_convolutional-modern/resnet.md: lazy layers, biases, projections without norm


class LazyBlock(Basic):
    def make_branch(self, before: int, width: int, stride: int) -> None:
        self.one, self.two = nn.LazyConv2d(width, 3, stride, 1), nn.LazyConv2d(width, 3, padding=1)
        self.norm_one, self.norm_two = nn.LazyBatchNorm2d(), nn.LazyBatchNorm2d()

    def shortcut(self, before: int, after: int, stride: int) -> nn.Module:
        return nn.LazyConv2d(after, 1, stride)


class Lazy(Net):
    block = LazyBlock

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(nn.LazyConv2d(64, 7, 2, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


# rasbt/deeplearning-models, pytorch_ipynb/cnn/cnn-resnet34-mnist.ipynb: grey images, no pool at the head, where the map
# of a 32-pixel image is 1x1


class Digits(Net):
    channels = 1

    def pool(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


# deepfakes/faceswap, plugins/extract/identity/vggface2.py: Keras's ResNet-50: stride on the first 1x1, its eps and
# momentum, uneven padding in the stem, a max-pool without padding


class FaceBlock(Bottle):
    def make_branch(self, before: int, width: int, stride: int) -> None:
        super().make_branch(before, width, stride)
        self.one, self.two = conv(before, width, 1, stride), conv(width, width, 3)


class Faces(Net):
    block = FaceBlock

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 0.001, 0.01

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 3, 2, 3)))


# YasinShafiei/ResNet-From-Scratch, architectures.py, its small network: a 7x7 stem of stride 1 without padding, biased
# projections; its ReLU after the max-pool changes nothing


class UnpaddedStem(Net):
    block = OneBiased = type("OneBiased", (Basic,), {"shortcut": OneNormBlock.shortcut})

    def make_stem(self) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 64, 7, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1), nn.ReLU())


# Amr-Abdellatif/Building-ResNet-from-scratch-using-PyTorch, main.ipynb: its ResNet18 has Bottlenecks


class ExpandedEighteen(Net):
    block = Bottle


@dataclass(frozen=True, kw_only=True)
class Person:
    """A network, the reference that it is meant to be, and its differences: each in words that name it."""

    network: type[Net]
    reference: str = "BasicBlock"
    """The nearest reference: "BasicBlock", "Bottleneck", "small BasicBlock", "cifar A" or "cifar B"."""
    differences: tuple[str, ...] = ()


PEOPLE: dict[str, Person] = {
    "labml": Person(network=Annotated, differences=("bias", "stem relu", "max-pool", "stride")),
    "kuangliu": Person(network=FixedPool, reference="small BasicBlock", differences=("pool 4",)),
    "kuangliu pre-activation": Person(
        network=PreActivation,
        reference="small BasicBlock",
        differences=("pre-activation", "stem batchnorm", "stem relu", "projection activation"),
    ),
    "weiaicunzai pre-activation": Person(
        network=PreActivationAside, reference="small BasicBlock", differences=("pre-activation", "bias")
    ),
    "bearpaw pre-activation": Person(
        network=PreActivationCifar,
        reference="cifar B",
        differences=("pre-activation", "stem batchnorm", "stem relu", "head batchnorm", "pool 8"),
    ),
    "weiaicunzai squeeze-and-excitation": Person(
        network=Gated,
        reference="small BasicBlock",
        differences=("squeeze-and-excitation", "bias", "relu"),
    ),
    "kuangliu squeeze-and-excitation": Person(
        network=SqueezeAndExcitation,
        reference="small BasicBlock",
        differences=("squeeze-and-excitation",),
    ),
    "aladdinpersson": Person(network=Probabilities, reference="Bottleneck", differences=("softmax",)),
    "JayPatwardhan bottleneck": Person(network=BiasedBlocks, reference="Bottleneck", differences=("bias",)),
    "JayPatwardhan basic": Person(network=OneNorm, differences=("norm shared", "bias shortcut")),
    "akamaster": Person(network=PaperCifar, reference="cifar A"),
    "yunjey": Person(network=TutorialCifar, reference="cifar B", differences=("shortcut 3x3", "pool 8")),
    "matin-ghorbani": Person(network=Twice, reference="Bottleneck", differences=("relu branch", "bias")),
    "dittohed": Person(network=BiasedEverywhere, reference="Bottleneck", differences=("bias",)),
    "joshua-paperspace": Person(network=LinearEnds, differences=("relu after the addition",)),
    "FrancescoSaverioZuppichini": Person(network=LeakyStem, differences=("relu before the addition", "stem leakyrelu")),
    "KellerJordan": Person(
        network=Dropping,
        reference="cifar B",
        differences=("dropout", "batchnorm shortcut", "bias", "stride"),
    ),
    "hszhao": Person(network=DeepStem, reference="Bottleneck", differences=("stem 3x3",)),
    "d2l": Person(network=Lazy, differences=("bias", "batchnorm shortcut")),
    "rasbt": Person(network=Digits, differences=("pool head",)),
    "faceswap": Person(
        network=Faces,
        reference="Bottleneck",
        differences=("1x1 stride", "eps", "momentum", "padding stem", "max-pool padding"),
    ),
    "YasinShafiei": Person(network=UnpaddedStem, differences=("stem stride", "stem padding", "bias shortcut")),
    "Amr-Abdellatif": Person(network=ExpandedEighteen, differences=("bottleneck",)),
}
