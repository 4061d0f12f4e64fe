"""Keeping parts of a network as they are while the rest is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def freeze(model: nn.Module, parts: str) -> None:
    """Keeps `parts` of a ResNet as they are: their weights get no gradients, and their BatchNorms no new statistics.

    "body" is everything but the head `fc`, "stages:2" the stem and the first two stages, "none" nothing.
    Raises ValueError for other parts, and for more stages than the network has.
    """
    for name in frozen_children(parts, [name for name, _ in model.named_children()]):
        part = model.get_submodule(name)
        part.requires_grad_(False)
        for path, module in list(part.named_modules(prefix=name)):
            if isinstance(module, _BatchNorm):
                model.set_submodule(path, FrozenBatchNorm(module))


def frozen_children(parts: str, children: Sequence[str]) -> list[str]:
    """Those of a ResNet's children that `freeze` keeps. Raises ValueError as it does."""
    stages = [name for name in children if name.startswith("layer")]
    if parts == "none":
        return []
    if parts == "body":
        return [name for name in children if name != "fc"]

    written = re.fullmatch(r"stages:(\d+)", parts)
    if not written or not 1 <= int(written[1]) <= len(stages):
        raise ValueError(f"model.freeze must be none, body, or stages:1 to stages:{len(stages)}, got {parts!r}")
    return ["conv1", "bn1", *stages[: int(written[1])]]


class FrozenBatchNorm(nn.Module):
    """A BatchNorm that normalises with its running statistics in training too, and never changes them.

    Parameters and buffers are those of the BatchNorm, under the same names.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
