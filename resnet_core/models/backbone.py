"""What detectors, segmenters and fine-tuning use of a ResNet: feature maps, another head, small images, less memory.

The names and signatures are timm's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_core.models.resnet import BasicBlock, Bottleneck, NormLayer, ResNet, conv3x3

STAGES = ("layer1", "layer2", "layer3", "layer4")


class Backbone(ResNet):
    """The ResNet that the builders return: `ResNet` itself, and the methods below in addition.

    It computes, prints and saves as `ResNet` does. `small_images` exchanges the stem for a 3x3 convolution of stride 1
    without max-pool, so that the last stage of a 32x32 image is 4x4 and not 1x1: the form most used for CIFAR, as in
    kuangliu/pytorch-cifar. It is not the paper's form for CIFAR, which is `CifarResNet`.
    """

    __jit_unused_properties__ = ("num_features", "num_classes", "feature_info")  # TorchScript cannot compile them

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: Sequence[int], num_classes: int = 1000,
        zero_init_residual: bool = False, groups: int = 1, width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None, norm_layer: NormLayer | None = None,
        *, in_channels: int = 3, stride_in_1x1: bool = False, small_images: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            block, layers, num_classes, zero_init_residual, groups, width_per_group, replace_stride_with_dilation,
            norm_layer, in_channels=in_channels, stride_in_1x1=stride_in_1x1,
        )  # fmt: skip
        if small_images:
            # Drawn last, with torch's own start, as by those who exchange the stem of torchvision's network: the same
            # seed gives the same weights.
            self.conv1 = conv3x3(in_channels, 64)
            self.maxpool = nn.Identity()  # type: ignore[assignment]

    def _get_name(self) -> str:
        return "ResNet"

    @property
    def num_features(self) -> int:
        """Channels of the last feature map, which are the head's inputs."""
        return self.inplanes

    @property
    def num_classes(self) -> int:
        """Outputs of the present head; 0 if it was removed."""
        return getattr(self.fc, "out_features", 0)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The five feature maps, the stem's and the four stages'.

        Each is a dict of `num_chs` (channels), `reduction` (input pixels per pixel of the map, along one side) and
        `module` (the name of the module that returns it).
        """
        channels, reduction = self.conv1.out_channels, self.conv1.stride[0]
        info = [{"num_chs": channels, "reduction": reduction, "module": "relu"}]

        reduction *= int(getattr(self.maxpool, "stride", 1))
        for name in STAGES:
            # The first block of a stage changes channels and resolution just as its shortcut does.
            for layer in self.get_submodule(name).get_submodule("0.downsample").children():
                if isinstance(layer, nn.Conv2d):
                    channels = layer.out_channels
                    reduction *= layer.stride[0]
            info.append({"num_chs": channels, "reduction": reduction, "module": name})
        return info

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The head, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a freshly initialized one; `num_classes=0` removes it, which leaves the pooled features.

        Raises ValueError for a negative `num_classes` and for a `global_pool` other than "avg", which a ResNet has.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be None or 'avg', got {global_pool!r}: a ResNet's head averages")
        self.fc = make_head(self.num_features, num_classes, like=self.conv1.weight)  # type: ignore[assignment]

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The last feature map and a list of the chosen ones; with `intermediates_only` the list without the last map.

        The maps are numbered as in `feature_info`, from 0 for the stem's. `indices` is a list of such numbers (negative
        ones count from the end), or how many of the last maps to return, or None for all. The list is in the network's
        order. With `stop_early` nothing after the last chosen map is computed. `norm` is timm's argument and has no
        effect, since a stage ends with a ReLU and not with a norm.
        Raises ValueError for an index out of range and for an `output_fmt` other than "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        chosen = chosen_indices(indices, 1 + len(STAGES))
        stages = STAGES[: max(chosen)] if stop_early else STAGES

        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for name in stages:
            x = self.get_submodule(name)(x)
            maps.append(x)

        intermediates = [maps[index] for index in sorted(chosen)]
        return intermediates if intermediates_only else (x, intermediates)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Stores only each block's input for the backward pass, which computes the rest again: less memory, more time.

        Gradients and BatchNorm statistics are the same to the bit (Chen et al. 2016, arXiv:1604.06174). Each stage
        becomes a new module with the same blocks.
        Raises ValueError if a stage has hooks, which the new module would lose.
        """
        stages = dict(zip(STAGES, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True))
        replaced = {name: stage for name, stage in stages.items() if isinstance(stage, RecomputedStage) != enable}
        for name, stage in replaced.items():
            if any(hooks for attribute, hooks in vars(stage).items() if attribute.endswith("_hooks")):
                raise ValueError(
                    f"{name} has hooks, and set_grad_checkpointing puts another module in its place; "
                    "call set_grad_checkpointing first and register the hooks afterwards"
                )
        for name, stage in replaced.items():
            kind = RecomputedStage if enable else nn.Sequential
            self.register_module(name, kind(*stage).train(stage.training))


def make_head(in_features: int, num_classes: int, like: Tensor) -> nn.Module:
    """A freshly initialized head, on the device and in the precision of `like`; no layer for 0 classes.

    Raises ValueError for a negative `num_classes`.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {num_classes}")
    if num_classes == 0:
        return nn.Identity()
    return nn.Linear(in_features, num_classes, device=like.device, dtype=like.dtype)


def has_small_stem(network: ResNet) -> bool:
    """Whether a network has the stem of `small_images`."""
    conv1 = network.conv1
    return (conv1.kernel_size, conv1.stride) == ((3, 3), (1, 1)) and isinstance(network.maxpool, nn.Identity)


def chosen_indices(indices: int | Sequence[int] | None, count: int) -> set[int]:
    """The numbers in 0..count-1 that `forward_intermediates` means by `indices`. Raises ValueError for any other."""
    if indices is None:
        return set(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(f"indices, the number of last feature maps, must be in 1..{count}, got {indices}")
        return set(range(count - indices, count))
    if not indices or not all(-count <= index < count for index in indices):
        raise ValueError(f"indices must name some of the feature maps 0..{count - 1}, got {list(indices)}")
    return {index % count for index in indices}


class RecomputedStage(nn.Sequential):
    """A stage whose backward pass computes each block again from its input."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if torch.compiler.is_compiling():
                # torch.compile accepts no contexts and needs none: its graphs update buffers once.
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(recomputing, block))
        return x


def recomputing(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a block's first and second computation: only the first updates its BatchNorm statistics."""
    return nullcontext(), copied_buffers(block)


@contextmanager
def copied_buffers(block: nn.Module) -> Iterator[None]:
    """Inside this context the block reads and writes copies of its buffers."""
    originals = [
        (module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in originals:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in originals:
            setattr(module, name, buffer)
