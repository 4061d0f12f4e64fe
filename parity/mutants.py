"""Known-wrong ResNet-50s, as people write them: the suite must find each. `MUTANTS[name]()` builds one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_core
from resnet_core import Bottleneck, ResNet

LAYERS = (3, 4, 6, 3)


def changed(change: Callable[[ResNet], None]) -> Callable[[], ResNet]:
    def build() -> ResNet:
        model = resnet_core.resnet50()
        change(model)
        return model

    return build


def stages(model: ResNet) -> list[nn.Sequential]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def blocks(model: ResNet) -> list[Bottleneck]:
    return [block for stage in stages(model) for block in stage]


def stride_on_the_first_stage_only(model: ResNet) -> None:
    for stage, stride in zip(stages(model), (2, 1, 1, 1), strict=True):
        for convolution in (stage[0].conv2, stage[0].downsample[0]):
            convolution.stride = (stride, stride)


def no_shortcut_norm(model: ResNet) -> None:
    for stage in stages(model):
        stage[0].downsample = stage[0].downsample[0]


def same_padding_in_the_pool(model: ResNet) -> None:
    model.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))


def no_max_pool(model: ResNet) -> None:
    model.maxpool = nn.Identity()


def no_stem_relu(model: ResNet) -> None:
    model.relu = nn.Identity()


def biased_convolutions(model: ResNet) -> None:
    for block in blocks(model):
        block.conv3.bias = nn.Parameter(torch.zeros(block.conv3.out_channels))


def max_pool_head(model: ResNet) -> None:
    model.avgpool = nn.AdaptiveMaxPool2d(1)


def softmax_left_in(model: ResNet) -> None:
    model.fc = nn.Sequential(model.fc, nn.Softmax(dim=1))


class ReluBeforeAddition(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out))) + self.downsample(x)


class NoLastRelu(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + self.downsample(x)


class ScaledShortcut(Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu((self.bn3(self.conv3(out)) + self.downsample(x)) / 2)


MUTANTS: dict[str, Callable[[], nn.Module]] = {
    "stride 2 on the first stage only": changed(stride_on_the_first_stage_only),
    "stride on the 1x1": partial(resnet_core.resnet50, stride_in_1x1=True),
    "BatchNorm eps 1e-3": partial(resnet_core.resnet50, norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    "BatchNorm momentum 0.9": partial(resnet_core.resnet50, norm_layer=partial(nn.BatchNorm2d, momentum=0.9)),
    "no BatchNorm in the shortcut": changed(no_shortcut_norm),
    "ReLU before the addition": partial(ResNet, ReluBeforeAddition, LAYERS),
    "no ReLU after the addition": partial(ResNet, NoLastRelu, LAYERS),
    "shortcut and branch averaged": partial(ResNet, ScaledShortcut, LAYERS),
    "SAME padding in the max-pool": changed(same_padding_in_the_pool),
    "no max-pool": changed(no_max_pool),
    "no stem ReLU": changed(no_stem_relu),
    "biased convolutions": changed(biased_convolutions),
    "last BatchNorm starts at zero": partial(resnet_core.resnet50, zero_init_residual=True),
    "width doubled": partial(resnet_core.resnet50, width_per_group=128),
    "two groups": partial(resnet_core.resnet50, groups=2, width_per_group=32),
    "one block too few": partial(ResNet, Bottleneck, (3, 4, 5, 3)),
    "max-pool at the head": changed(max_pool_head),
    "softmax left in": changed(softmax_left_in),
}
