"""A healthy ResNet in a tutorial's style: a helper for conv-bn-relu, `_make_layer`, and a class for each idea."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TutorialBatchNorm(nn.BatchNorm2d):
    """BatchNorm that makes its scale and shift itself, so that they can be shown in the lesson."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.affine = True
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class ConvBNAct(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, kernel: int, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_ch, out_ch, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
        self.bn = TutorialBatchNorm(out_ch)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Block(nn.Module):
    """What both kinds of block share: `body`, made by the subclass, the skip connection, the last ReLU."""

    expand = 1

    def __init__(self, in_ch: int, mid_ch: int, stride: int) -> None:
        super().__init__()
        out_ch = mid_ch * self.expand
        self.body = self.make_body(in_ch, mid_ch, stride)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or in_ch != out_ch:
            self.skip = ConvBNAct(in_ch, out_ch, 1, stride, act=False)
        self.last_act = nn.ReLU(inplace=True)

    def make_body(self, in_ch: int, mid_ch: int, stride: int) -> nn.Sequential:
        return nn.Sequential(ConvBNAct(in_ch, mid_ch, 3, stride), ConvBNAct(mid_ch, mid_ch, 3, act=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y + self.skip(x)
        return self.last_act(y)


class BottleneckBlock(Block):
    expand = 4

    def make_body(self, in_ch: int, mid_ch: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            ConvBNAct(in_ch, mid_ch, 1),
            ConvBNAct(mid_ch, mid_ch, 3, stride),
            ConvBNAct(mid_ch, mid_ch * self.expand, 1, act=False),
        )


class Stage(nn.Module):
    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ResNet(nn.Module):
    def __init__(self, block: type[Block], depths: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        self.in_ch = 64
        self.stem = ConvBNAct(3, 64, 7, 2)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage1 = self._make_layer(block, 64, depths[0], stride=1)
        self.stage2 = self._make_layer(block, 128, depths[1], stride=2)
        self.stage3 = self._make_layer(block, 256, depths[2], stride=2)
        self.stage4 = self._make_layer(block, 512, depths[3], stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(self.in_ch, num_classes)

    def _make_layer(self, block: type[Block], mid_ch: int, depth: int, stride: int) -> Stage:
        blocks = []
        for i in range(depth):
            blocks.append(block(self.in_ch, mid_ch, stride if i == 0 else 1))
            self.in_ch = mid_ch * block.expand
        return Stage(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        x = self.global_pool(x)
        x = x.view(x.size(0), -1)
        return self.linear(x)


def build(depths: Sequence[int] = (3, 4, 6, 3), bottleneck: bool = True, num_classes: int = 1000) -> ResNet:
    return ResNet(BottleneckBlock if bottleneck else Block, depths, num_classes)
