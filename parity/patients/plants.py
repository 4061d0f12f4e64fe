"""The known mistakes, each as a change of our own ResNet. `PLANTS["no stem ReLU"](model)`.

Each takes a ResNet, which it may change or use up, and returns the network with the mistake. Where a mistake makes no
sense it raises NotApplicable: a BasicBlock has no 1x1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.models.backbone import Backbone, has_small_stem
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet, conv1x1, make_stage

Mistake = Callable[[ResNet], nn.Module]
Block = Any  # BasicBlock or Bottleneck


class NotApplicable(ValueError):  # noqa: N818
    """A mistake that cannot be made in this network."""


def stages(model: ResNet) -> list[nn.Sequential]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def blocks(model: ResNet) -> Iterator[Block]:
    for stage in stages(model):
        yield from stage


def bottlenecks(model: ResNet) -> list[Bottleneck]:
    found = [block for block in blocks(model) if isinstance(block, Bottleneck)]
    if not found:
        raise NotApplicable("only a Bottleneck can have it")
    return found


def strided(model: ResNet) -> Iterator[Block]:
    """The blocks that halve the resolution."""
    return (block for block in blocks(model) if 2 in strides(block))


def strides(block: Block) -> list[int]:
    return [module.stride[0] for module in block.modules() if isinstance(module, nn.Conv2d)]


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]


# Another forward of the same layers: no shape changes.


def branch(block: Block, x: Tensor) -> Tensor:
    """What a block adds to its shortcut."""
    out = F.relu(block.bn1(block.conv1(x)))
    if isinstance(block, BasicBlock):
        return block.bn2(block.conv2(out))
    return block.bn3(block.conv3(F.relu(block.bn2(block.conv2(out)))))


def forward_of_blocks(forward: Callable[[Block, Tensor], Tensor], model: ResNet) -> nn.Module:
    for block in blocks(model):
        block.forward = MethodType(forward, block)
    return model


def no_inner_relu(block: Block, x: Tensor) -> Tensor:
    out = block.bn2(block.conv2(block.bn1(block.conv1(x))))
    if isinstance(block, Bottleneck):
        out = block.bn3(block.conv3(F.relu(out)))
    return F.relu(out + block.downsample(x))


def clobbered(block: Block, x: Tensor) -> Tensor:
    shortcut = F.relu(block.downsample(x))  # an identity is not negative: only projections show it
    return F.relu(branch(block, x) + shortcut)


BLOCK_FORWARDS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "ReLU before the addition": lambda block, x: F.relu(branch(block, x)) + block.downsample(x),
    "no ReLU after the addition": lambda block, x: branch(block, x) + block.downsample(x),
    "no ReLU inside the block": no_inner_relu,
    "ReLU on the projected shortcut": clobbered,
    "shortcut halved": lambda block, x: F.relu(branch(block, x) + block.downsample(x) / 2),
    "branch and shortcut averaged": lambda block, x: F.relu((branch(block, x) + block.downsample(x)) / 2),
}


def no_shortcut(model: ResNet) -> nn.Module:
    for block in blocks(model):
        block.downsample = nn.Identity()  # without shortcut it has no projection either
    return forward_of_blocks(lambda block, x: F.relu(branch(block, x)), model)


# Other layers in the stem and at the head.


def replace(name: str, make: Callable[[ResNet], nn.Module], model: ResNet) -> nn.Module:
    setattr(model, name, make(model))
    return model


def padded(before: int, after: int, module: nn.Module) -> nn.Module:
    """The module with TensorFlow's uneven padding in place of its own."""
    module.padding = (0, 0) if isinstance(module, nn.Conv2d) else 0  # type: ignore[assignment]
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), module)


def same_padding_in_strided_3x3(model: ResNet) -> nn.Module:
    for block in strided(model):
        name = "conv1" if isinstance(block, BasicBlock) else "conv2"
        setattr(block, name, padded(0, 1, getattr(block, name)))
    return model


def three_by_three_stem(model: ResNet) -> nn.Module:
    model.conv1 = nn.Conv2d(model.conv1.in_channels, 64, 3, 2, 1, bias=False)
    return model


# Strides and shortcuts.


def stride_in_1x1(model: ResNet) -> nn.Module:
    for block in bottlenecks(model):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


def strides_of_stages(values: Sequence[int], model: ResNet) -> nn.Module:
    """Strides of the four stages, on the convolutions that have them."""
    for stage, stride in zip(stages(model), values, strict=True):
        first: Block = stage[0]
        three: Any = first.conv1 if isinstance(first, BasicBlock) else first.conv2
        three.stride = (stride, stride)

        # The shortcut follows; where the block had none, a stride makes it necessary.
        if stride != 1 and isinstance(first.downsample, nn.Identity):
            channels = first.conv1.in_channels
            first.downsample = nn.Sequential(conv1x1(channels, channels), nn.BatchNorm2d(channels))
        if isinstance(first.downsample, nn.Sequential):
            convolutions(first.downsample)[0].stride = (stride, stride)
    return model


def no_shortcut_norm(model: ResNet) -> nn.Module:
    for block in blocks(model):
        if isinstance(block.downsample, nn.Sequential):
            block.downsample = block.downsample[0]
    return model


def projection_on_every_block(model: ResNet) -> nn.Module:
    for block in blocks(model):
        if isinstance(block.downsample, nn.Identity):
            channels = block.conv1.in_channels
            block.downsample = nn.Sequential(conv1x1(channels, channels), nn.BatchNorm2d(channels))
    return model


def average_pool_shortcut(model: ResNet) -> nn.Module:
    for block in strided(model):
        convolution, norm = block.downsample
        convolution.stride = (1, 1)
        block.downsample = nn.Sequential(nn.AvgPool2d(2, 2), convolution, norm)
    return model


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the new channels, behind the old."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def identity_without_projection(model: ResNet) -> nn.Module:
    for block in blocks(model):
        if isinstance(block.downsample, nn.Sequential):
            convolution: Any = block.downsample[0]
            new = convolution.out_channels - convolution.in_channels
            block.downsample = PaddedShortcut(convolution.stride[0], new)
    return model


# Settings of many layers.


def biased(model: ResNet) -> nn.Module:
    for convolution in convolutions(model):
        convolution.bias = nn.Parameter(torch.zeros_like(convolution.weight[:, 0, 0, 0]))
    return model


def norm_setting(name: str, value: float, model: ResNet) -> nn.Module:
    for norm in norms(model):
        setattr(norm, name, value)
    return model


def append(name: str, module: nn.Module, model: ResNet) -> nn.Module:
    return replace(name, lambda model: nn.Sequential(getattr(model, name), module), model)


def dropout_before_head(probability: float, model: ResNet) -> nn.Module:
    return replace("fc", lambda model: nn.Sequential(nn.Dropout(probability), model.fc), model)


# Another network: other depths, widths or blocks.


def rebuilt(model: ResNet, block: Any = None, layers: Sequence[int] | None = None, **config: Any) -> ResNet:
    """A network with the arguments of `model`, but for those given."""
    first: Any = model.layer1[0]
    config = {
        "num_classes": model.fc.out_features,
        "in_channels": model.conv1.in_channels,
        "small_images": has_small_stem(model),
        **config,
    }
    if isinstance(first, Bottleneck):
        groups, width = first.conv2.groups, first.conv2.out_channels
        config = {"groups": groups, "width_per_group": width // groups, **config}
    return Backbone(block or type(first), layers or [len(stage) for stage in stages(model)], **config)


def regrouped(groups: int, model: ResNet) -> nn.Module:
    convolution = bottlenecks(model)[0].conv2
    if groups == convolution.groups or convolution.out_channels % groups:
        raise NotApplicable(f"its 3x3 cannot have {groups} groups instead")
    return rebuilt(model, groups=groups, width_per_group=convolution.out_channels // groups)


def widened(factor: float, model: ResNet) -> nn.Module:
    convolution = bottlenecks(model)[0].conv2
    width = convolution.out_channels * factor / convolution.groups
    if width != int(width):
        raise NotApplicable(f"its 3x3 cannot be {factor:g} times as wide")
    return rebuilt(model, groups=convolution.groups, width_per_group=int(width))


def expansion_two(model: ResNet) -> nn.Module:
    bottlenecks(model)
    return rebuilt(model, block=type("NarrowBottleneck", (Bottleneck,), {"expansion": 2}))


def deeper(stage: int, change: int, model: ResNet) -> nn.Module:
    layers = [len(each) for each in stages(model)]
    layers[stage] += change
    if layers[stage] < 1:
        raise NotApplicable("its stage has only one block")
    return rebuilt(model, layers=layers)


def last_stage_not_wider(model: ResNet) -> nn.Module:
    first: Any = model.layer3[0]
    planes, inplanes = 256, 256 * first.expansion
    groups, base_width = 1, 64
    if isinstance(first, Bottleneck):
        groups = first.conv2.groups
        base_width = first.conv2.out_channels // groups // 4
    kind = type(first), groups, base_width, nn.BatchNorm2d, False
    model.layer4 = make_stage(*kind, inplanes, planes, len(model.layer4), stride=2)
    model.fc = nn.Linear(inplanes, model.fc.out_features)
    return model


class PreActivation(nn.Module):
    """Norm, ReLU, convolution, in this order (He et al. 2016), on the layers of a block."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        names = ("conv1", "conv2") if isinstance(block, BasicBlock) else ("conv1", "conv2", "conv3")
        self.layers = nn.ModuleList(getattr(block, name) for name in names)
        self.norms = nn.ModuleList(nn.BatchNorm2d(getattr(block, name).in_channels) for name in names)
        projection = block.downsample
        self.downsample = projection[0] if isinstance(projection, nn.Sequential) else projection

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            out = layer(F.relu(norm(out)))
        return out + self.downsample(x)


def pre_activation(model: ResNet) -> nn.Module:
    for stage in stages(model):
        for number, block in enumerate(stage):
            stage[number] = PreActivation(block)
    return model


PLANTS: dict[str, Mistake] = {
    "stride on the first 1x1": stride_in_1x1,
    "stride 2 on the first stage only": partial(strides_of_stages, (2, 1, 1, 1)),
    "no stride in layer2": partial(strides_of_stages, (1, 1, 2, 2)),
    "no stride in layer3": partial(strides_of_stages, (1, 2, 1, 2)),
    "no stride in layer4": partial(strides_of_stages, (1, 2, 2, 1)),
    "SAME padding in the stem": partial(replace, "conv1", lambda model: padded(2, 3, model.conv1)),
    "SAME padding in the max-pool": partial(replace, "maxpool", lambda model: padded(0, 1, model.maxpool)),
    "SAME padding in the strided 3x3": same_padding_in_strided_3x3,
    "3x3 stem": three_by_three_stem,
    "no stem BatchNorm": partial(replace, "bn1", lambda model: nn.Identity()),
    "no stem ReLU": partial(replace, "relu", lambda model: nn.Identity()),
    "max-pool without padding": partial(replace, "maxpool", lambda model: nn.MaxPool2d(3, 2)),
    "no max-pool": partial(replace, "maxpool", lambda model: nn.Identity()),
    "2x2 max-pool": partial(replace, "maxpool", lambda model: nn.MaxPool2d(2, 2)),
    "average pool in the stem": partial(replace, "maxpool", lambda model: nn.AvgPool2d(3, 2, 1)),
    **{name: partial(forward_of_blocks, forward) for name, forward in BLOCK_FORWARDS.items()},
    "no shortcut": no_shortcut,
    "no BatchNorm in the shortcut": no_shortcut_norm,
    "projection on every block": projection_on_every_block,
    "average-pool shortcut": average_pool_shortcut,
    "identity shortcut without projection": identity_without_projection,
    "pre-activation order": pre_activation,
    "biased convolutions": biased,
    "BatchNorm eps 1e-3": partial(norm_setting, "eps", 1e-3),
    "BatchNorm eps 1.001e-5": partial(norm_setting, "eps", 1.001e-5),
    "BatchNorm momentum 0.9": partial(norm_setting, "momentum", 0.9),
    "dropout before the head": partial(dropout_before_head, 0.5),
    "max-pool at the head": partial(replace, "avgpool", lambda model: nn.AdaptiveMaxPool2d(1)),
    "softmax in the output": partial(append, "fc", nn.Softmax(dim=1)),
    **{f"{groups} groups in the 3x3": partial(regrouped, groups) for groups in (1, 2, 4, 8, 16, 32, 64)},
    "3x3 twice as wide": partial(widened, 2),
    "3x3 half as wide": partial(widened, 0.5),
    "last stage not wider": last_stage_not_wider,
    "expansion 2": expansion_two,
    **{f"one block too many in layer{stage + 1}": partial(deeper, stage, 1) for stage in range(4)},
    **{f"one block too few in layer{stage + 1}": partial(deeper, stage, -1) for stage in range(4)},
}
