"""ResNet: He et al., "Deep Residual Learning for Image Recognition", 2015 (arXiv:1512.03385).

This is v1.5, the form of torchvision and timm: where a Bottleneck halves the resolution, the stride sits on its 3x3
convolution. The paper's own form, v1, has it on the first 1x1 (`stride_in_1x1=True`).

Shapes: N batch, C channels, H W pixels (halves round up), e the block's expansion (BasicBlock 1, Bottleneck 4).
Attribute names are torchvision's: they are the keys of every published checkpoint.

The exercises edit the text of this file, so a change here may need one in exercises/catalog.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]  # number of channels -> a normalisation of [N, C, H, W]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps H and W at stride 1; no bias, since a BatchNorm follows."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
    )


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def make_shortcut(in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer) -> nn.Module:
    """Identity where the shapes agree, else a projection (section 3.3, option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), norm_layer(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (figure 5, left).

    `[N, inplanes, H, W] -> [N, planes, H/stride, W/stride]`. `downsample` is the shortcut, identity when None.
    The signature is torchvision's. Raises ValueError for groups or width, NotImplementedError for dilation:
    only Bottleneck has them.
    """

    expansion = 1

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
        groups: int = 1, base_width: int = 64, dilation: int = 1, norm_layer: NormLayer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if groups != 1 or base_width != 64:
            raise ValueError(
                "BasicBlock only supports groups=1 and base_width=64, "
                f"got groups={groups} and base_width={base_width}; use Bottleneck for grouped or wide blocks"
            )
        if dilation > 1:
            raise NotImplementedError(
                f"Dilation > 1 not supported in BasicBlock, got {dilation}; use Bottleneck to dilate instead of stride"
            )
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1 reduces, 3x3 works, 1x1 expands fourfold, and the shortcut (figure 5, right).

    `[N, inplanes, H, W] -> [N, 4 planes, H/stride, W/stride]`. The 3x3 is `planes * base_width / 64 * groups` wide:
    ResNeXt (Xie et al. 2017) splits it into groups, Wide ResNet (Zagoruyko & Komodakis 2016) doubles base_width.
    """

    expansion = 4

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
        groups: int = 1, base_width: int = 64, dilation: int = 1, norm_layer: NormLayer | None = None,
        *, stride_in_1x1: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv1x1(inplanes, width, stride_1x1)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride_3x3, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


# The paper's Table 1: blocks in       conv2_x, conv3_x, conv4_x, conv5_x.
TABLE_1 = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

# The same depths with another 3x3: ResNeXt (groups) and Wide ResNet (twice the width).
WIDER = {
    "resnext50_32x4d": ("resnet50", {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": ("resnet101", {"groups": 32, "width_per_group": 8}),
    "resnext101_64x4d": ("resnet101", {"groups": 64, "width_per_group": 4}),
    "wide_resnet50_2": ("resnet50", {"width_per_group": 128}),
    "wide_resnet101_2": ("resnet101", {"width_per_group": 128}),
}


class ResNet(nn.Module):
    """Stem, four stages, global average pool, linear head: `[N, in_channels, H, W] -> [N, num_classes]` logits.

    `layers` gives the blocks of each stage, as in TABLE_1. `groups` and `width_per_group` shape the Bottleneck's 3x3.
    `replace_stride_with_dilation` holds three flags, for conv3_x, conv4_x and conv5_x: a stage with the flag keeps the
    resolution and dilates instead. `zero_init_residual` starts every block as its shortcut (Goyal et al. 2017).
    Raises ValueError or NotImplementedError for combinations that do not exist.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: Sequence[int], num_classes: int = 1000,
        zero_init_residual: bool = False, groups: int = 1, width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None, norm_layer: NormLayer | None = None,
        *, in_channels: int = 3, stride_in_1x1: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers must give the number of blocks, at least 1, of each of 4 stages, got {layers}")
        if stride_in_1x1 and not issubclass(block, Bottleneck):
            raise ValueError(f"stride_in_1x1 moves a Bottleneck's stride; {block.__name__} has no 1x1: leave it False")

        norm_layer = norm_layer or nn.BatchNorm2d
        kind = block, groups, width_per_group, norm_layer, stride_in_1x1  # the same in all stages
        dilation3, dilation4, dilation5 = stage_dilations(replace_stride_with_dilation)
        e = block.expansion

        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = make_stage(*kind, 64, 64, layers[0], stride=1)
        self.layer2 = make_stage(*kind, 64 * e, 128, layers[1], stride=2, dilation=dilation3)
        self.layer3 = make_stage(*kind, 128 * e, 256, layers[2], stride=2, dilation=dilation4)
        self.layer4 = make_stage(*kind, 256 * e, 512, layers[3], stride=2, dilation=dilation5)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * e, num_classes)
        self.inplanes = 512 * e  # torchvision's detection helpers read it
        initialize(self, zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's feature map, before pooling."""
        # The left column of Table 1; x starts as [N, in_channels, H, W].
        x = self.relu(self.bn1(self.conv1(x)))  # [N, 64, H/2, W/2]
        x = self.maxpool(x)  # [N, 64, H/4, W/4]
        x = self.layer1(x)  # [N, 64e, H/4, W/4]
        x = self.layer2(x)  # [N, 128e, H/8, W/8]
        x = self.layer3(x)  # [N, 256e, H/16, W/16]
        x = self.layer4(x)  # [N, 512e, H/32, W/32]
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from a feature map; with `pre_logits` the pooled features before them."""
        x = self.avgpool(x)  # [N, 512e, 1, 1]
        x = torch.flatten(x, 1)  # [N, 512e]
        if pre_logits:
            return x
        x = self.fc(x)  # [N, num_classes]
        return x


def make_stage(
    block: type[BasicBlock] | type[Bottleneck], groups: int, base_width: int, norm_layer: NormLayer,
    stride_in_1x1: bool, inplanes: int, planes: int, num_blocks: int, stride: int, dilation: tuple[int, int] = (1, 1),
) -> nn.Sequential:  # fmt: skip
    """`num_blocks` blocks, of which the first changes the shape; `dilation` is the first block's and the others'."""
    first, rest = dilation
    if first != rest:
        stride = 1  # dilation replaces it
    outplanes = planes * block.expansion

    # Built before its block, as in torchvision, so that the same seed gives the same weights.
    projection = make_shortcut(inplanes, outplanes, stride, norm_layer)
    v1: dict[str, bool] = {"stride_in_1x1": True} if stride_in_1x1 else {}  # torchvision's blocks do not take it
    blocks = [block(inplanes, planes, stride, projection, groups, base_width, first, norm_layer, **v1)]
    for _ in range(num_blocks - 1):
        blocks.append(block(outplanes, planes, 1, None, groups, base_width, rest, norm_layer))
    return nn.Sequential(*blocks)


def stage_dilations(replace_stride_with_dilation: Sequence[bool] | None) -> list[tuple[int, int]]:
    """Dilation of conv3_x, conv4_x, conv5_x as (first block, other blocks): each replaced stride doubles it."""
    flags = (False, False, False) if replace_stride_with_dilation is None else replace_stride_with_dilation
    if len(flags) != 3:
        raise ValueError(f"replace_stride_with_dilation should be None or 3 flags (conv3_x .. conv5_x), got {flags}")

    dilations = []
    first = 1
    for replaced in flags:
        rest = first * 2 if replaced else first
        dilations.append((first, rest))
        first = rest
    return dilations


def initialize(model: nn.Module, zero_init_residual: bool = False) -> None:
    """He et al. 2015b (arXiv:1502.01852), fan-out, for convolutions; norms scale by 1; the head keeps torch's start."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    if zero_init_residual:
        for module in model.modules():
            last_norm = getattr(module, "bn3", None) or getattr(module, "bn2", None)  # only a block has one
            if last_norm is not None and last_norm.weight is not None:
                nn.init.zeros_(last_norm.weight)
