"""A healthy ResNet as one flat row of layers; each block takes its shortcut first, then adds the branch to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Shortcut(nn.Sequential):
    """Empty where nothing changes."""

    def __init__(self, before: int, after: int, step: int) -> None:
        super().__init__()
        if step > 1 or before != after:
            self.append(nn.Conv2d(before, after, kernel_size=1, stride=step, bias=False))
            self.append(nn.BatchNorm2d(after))


class Residual(nn.Module):
    def __init__(self, shortcut: Shortcut, convolutions: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.main = nn.Sequential(OrderedDict(self.layers(convolutions)))
        self.rectify = nn.ReLU()

    @staticmethod
    def layers(convolutions: Sequence[nn.Conv2d]) -> Iterator[tuple[str, nn.Module]]:
        for number, convolution in enumerate(convolutions):
            if number:
                yield f"rectify{number}", nn.ReLU()
            yield f"convolve{number}", convolution
            yield f"normalize{number}", nn.BatchNorm2d(convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        carried = self.shortcut(x)
        return self.rectify(carried + self.main(x))


def small_block(before: int, size: int, step: int) -> Residual:
    first = nn.Conv2d(before, size, 3, step, 1, bias=False)
    return Residual(Shortcut(before, size, step), [first, nn.Conv2d(size, size, 3, 1, 1, bias=False)])


def large_block(before: int, size: int, step: int) -> Residual:
    narrow = nn.Conv2d(before, size, 1, bias=False)
    middle = nn.Conv2d(size, size, 3, step, 1, bias=False)
    return Residual(Shortcut(before, 4 * size, step), [narrow, middle, nn.Conv2d(size, 4 * size, 1, bias=False)])


class Row(nn.Module):
    def __init__(self, depths: Sequence[int], bottleneck: bool, num_classes: int) -> None:
        super().__init__()
        block, growth = (large_block, 4) if bottleneck else (small_block, 1)
        sizes = [64 * 2**stage for stage, depth in enumerate(depths) for _ in range(depth)]
        befores = [64, *(growth * size for size in sizes)]
        self.row = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.row.append(nn.MaxPool2d(3, 2, 1))
        for previous, before, size in zip([64, *sizes], befores, sizes, strict=False):
            self.row.append(block(before, size, 1 if size == previous else 2))
        self.head = nn.Linear(befores[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.mean(self.row(x), dim=(2, 3)))


def build(depths: Sequence[int] = (3, 4, 6, 3), bottleneck: bool = True, num_classes: int = 1000) -> Row:
    return Row(depths, bottleneck, num_classes)
