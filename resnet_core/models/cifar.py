"""The CIFAR networks of He et al. 2015, section 4.2: depth 6n+2, a 3x3 stem, three stages of 16, 32, 64 channels.

The paper's table 6 uses shortcut A, which has no parameters; B is the projection of ImageNet's networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.models.backbone import make_head
from resnet_core.models.resnet import BasicBlock, conv3x3, initialize, make_shortcut


class PadShortcut(nn.Module):
    """Shortcut A: every second pixel, with zeros as the new channels.

    `[N, C, H, W] -> [N, 2C, H/2, W/2]`. The paper does not say where the zeros go; they are split evenly before and
    after, as in the widely used implementation (pytorch_resnet_cifar10), so that its weights give the same outputs.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """`[N, in_channels, H, W] -> [N, num_classes]` logits, n blocks in each of three stages; 32x32 pixels in the paper.

    Raises ValueError for n below 1 and a shortcut other than "A" or "B".
    """

    def __init__(self, n: int, num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> None:
        super().__init__()
        if n < 1:
            raise ValueError(f"n, the number of blocks in each stage, must be at least 1, got {n}")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be 'A' (identity, zero-padded) or 'B' (projection), got {shortcut!r}")
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16) for _ in range(n)])
        self.layer2 = make_halving_stage(16, 32, n, shortcut)
        self.layer3 = make_halving_stage(32, 64, n, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        initialize(self)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a freshly initialized one; `num_classes=0` removes it, as `Backbone` does."""
        self.fc = make_head(64, num_classes, like=self.conv1.weight)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # [N, 16, H, W]
        x = self.layer1(x)  # [N, 16, H, W]
        x = self.layer2(x)  # [N, 32, H/2, W/2]
        x = self.layer3(x)  # [N, 64, H/4, W/4]
        x = torch.flatten(self.avgpool(x), 1)  # [N, 64]
        x = self.fc(x)  # [N, num_classes]
        return x


SHORTCUTS: dict[str, Callable[[int, int], nn.Module]] = {
    "A": lambda in_channels, out_channels: PadShortcut(out_channels - in_channels),
    "B": lambda in_channels, out_channels: make_shortcut(in_channels, out_channels, 2, nn.BatchNorm2d),
}


def make_halving_stage(in_channels: int, out_channels: int, n: int, shortcut: str) -> nn.Sequential:
    """n blocks, of which the first halves H and W."""
    first = BasicBlock(in_channels, out_channels, 2, SHORTCUTS[shortcut](in_channels, out_channels))
    return nn.Sequential(first, *[BasicBlock(out_channels, out_channels) for _ in range(n - 1)])
