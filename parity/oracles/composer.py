"""MosaicML Composer's CIFAR ResNet (`composer/models/resnet_cifar`, last in 0.18), built anew by its plan.

`resnet_20` and `resnet_56` alone, with n = 3 and 9 blocks in each of three stages of 16, 32 and 64 channels. Its
`resnet_9` is another network, myrtle.ai's.
"""

from __future__ import annotations

from torch import nn

BLOCKS = {"resnet_20": 3, "resnet_56": 9}


def network(name: str) -> nn.Sequential:
    """The network of torchvision's blocks, as torch starts them. Its average pool is torch's adaptive one: Composer's
    own, of 8x8, adds in another order."""
    from torchvision.models.resnet import BasicBlock

    def block(before: int, width: int, stride: int) -> nn.Module:
        if stride == 1:
            return BasicBlock(before, width)
        projection = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        return BasicBlock(before, width, stride, projection)

    rest = BLOCKS[name] - 1
    widths = [
        (16, 16, 1),
        *[(16, 16, 1)] * rest,
        (16, 32, 2),
        *[(32, 32, 1)] * rest,
        (32, 64, 2),
        *[(64, 64, 1)] * rest,
    ]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [block(*each) for each in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
