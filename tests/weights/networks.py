"""CIFAR networks under the names that other people use, and the files that they save: written here, not copied."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, x):
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class Network(nn.Module):
    """A 3x3 stem, stages of blocks, the mean of each channel, and a head called `linear`."""

    def __init__(self, widths, depth, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = []
        for number, (inputs, outputs) in enumerate(pairwise([widths[0], *widths]), start=1):
            first = Block(inputs, outputs, 1 if number == 1 else 2, shortcut)
            self.stages.append(f"layer{number}")
            rest = [Block(outputs, outputs, 1, shortcut) for _ in range(depth - 1)]
            self.add_module(self.stages[-1], nn.Sequential(first, *rest))
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


def projected(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Padded(nn.Module):
    """Every second pixel, and half of the new channels' zeros before the old channels."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, self.zeros = stride, (outputs - inputs) // 2

    def forward(self, x):
        zeros = x.new_zeros(len(x), self.zeros, *x[0, 0, :: self.stride, :: self.stride].shape)
        return torch.cat([zeros, x[:, :, :: self.stride, :: self.stride], zeros], 1)


def kuangliu():
    """The ResNet-18 of kuangliu/pytorch-cifar by its names: `shortcut` for `downsample`, `linear` for `fc`."""
    return Network((64, 128, 256, 512), depth=2, shortcut=projected)


def kuangliu_checkpoint(network, prefix="module."):
    """As its trainer saves it; `prefix` is DataParallel's, which it uses where there is a GPU."""
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    return {"net": state, "acc": 95.1, "epoch": 199}


def akamaster(n=3):
    """ResNet-(6n+2) of akamaster/pytorch_resnet_cifar10 by its names: `linear` for `fc`, and shortcut A has none."""
    return Network((16, 32, 64), depth=n, shortcut=Padded)


def akamaster_checkpoint(network):
    """As its published files are: from before BatchNorm counted batches."""
    state = {f"module.{name}": value for name, value in network.state_dict().items() if "num_batches" not in name}
    return {"state_dict": state, "best_prec1": 91.7}
