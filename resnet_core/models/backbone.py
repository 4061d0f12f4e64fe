"""ResNet as other code builds upon it: stage outputs, a head to exchange, less memory. The methods are timm's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_core.models.resnet import ResNet, stage_dilations

STAGES = ("layer1", "layer2", "layer3", "layer4")


class Backbone(ResNet):
    """A ResNet, the same arguments and outputs, with what detectors, segmenters and fine-tuning need besides.

    `feature_info` lists the five feature maps, the stem's and the stages', as dicts of `num_chs` (channels),
    `reduction` (input pixels to one of the map's) and `module` (its name); `num_features` counts the head's inputs.
    """

    def __init__(self, *arguments: Any, **config: Any) -> None:
        super().__init__(*arguments, **config)
        flags = config.get("replace_stride_with_dilation", arguments[6] if len(arguments) > 6 else None)
        self.num_features = self.fc.in_features
        self.num_classes = self.fc.out_features
        self.feature_info = feature_info(self.num_features, flags)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The head, or its name."""
        return "fc" if name_only else self.fc

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from a feature map, or the pooled features before them."""
        x = torch.flatten(self.avgpool(x), 1)
        return x if pre_logits else self.fc(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the body a new head of `num_classes` outputs, freshly initialised; 0 leaves the pooled features.

        Raises ValueError for a `global_pool` other than "avg", which a ResNet has, and for a negative number.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be None or 'avg', got {global_pool!r}: a ResNet's head averages")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        like = self.conv1.weight
        self.num_classes = num_classes
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        else:
            self.fc = nn.Identity()  # type: ignore[assignment]

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The last feature map and a list of those that `indices` choose, or the list alone.

        The maps are numbered as in `feature_info`, 0 the stem's; `indices` are numbers (from the end where negative),
        or how many of the last, or None for all; the maps come in the network's order. `stop_early` computes nothing
        after the last one chosen. `norm` is timm's argument without effect: a stage ends with a ReLU, not a norm.
        Raises ValueError for an index out of range and an `output_fmt` other than "NCHW".
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
        """Keeps only each block's input for the backward pass and computes the rest again: less memory, more time.

        Gradients and BatchNorm statistics are the same to the bit (Chen et al. 2016, arXiv:1604.06174).
        """
        for name in STAGES:
            # The class alone changes: the module stays itself, with its parameters, hooks and references.
            self.get_submodule(name).__class__ = RecomputedStage if enable else nn.Sequential


def feature_info(num_features: int, replace_stride_with_dilation: Sequence[bool] | None) -> list[dict[str, Any]]:
    """timm's list of feature maps: the stem's, at half the resolution, and the four stages'."""
    info = [{"num_chs": 64, "reduction": 2, "module": "relu"}]
    dilations = [(1, 1), *stage_dilations(replace_stride_with_dilation)]
    reduction = 2
    for number, (first, rest) in enumerate(dilations):
        reduction *= 2 * first // rest  # a stride replaced by dilation halves nothing
        info.append({"num_chs": num_features >> 3 - number, "reduction": reduction, "module": STAGES[number]})
    return info


def chosen_indices(indices: int | Sequence[int] | None, count: int) -> set[int]:
    """Numbers in 0..count-1 from timm's forms. Raises ValueError for one that is not there."""
    if isinstance(indices, int) and not 1 <= indices <= count:
        raise ValueError(f"indices, the number of last feature maps, must be in 1..{count}, got {indices}")
    if indices is None or isinstance(indices, int):
        return set(range(count - (count if indices is None else indices), count))
    wrong = [index for index in indices if not -count <= index < count]
    if wrong or not indices:
        raise ValueError(f"indices must name some of the feature maps 0..{count - 1}, got {list(indices)}")
    return {index % count for index in indices}


class RecomputedStage(nn.Sequential):
    """A stage whose backward pass computes each block again from its input."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            # torch.compile takes no such contexts, and needs none: its graphs write buffers once.
            contexts: dict[str, Any] = {"context_fn": partial(recomputing, block)}
            x = checkpoint(block, x, use_reentrant=False, **({} if torch.compiler.is_compiling() else contexts))
        return x


def recomputing(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's first and second computation: only the first counts in its BatchNorm statistics."""
    return nullcontext(), copied_buffers(block)


@contextmanager
def copied_buffers(block: nn.Module) -> Iterator[None]:
    """Within it the block reads and writes copies of its buffers."""
    kept = [(module, name, kept) for module in block.modules() for name, kept in module.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
