"""The model card's initializers, for `model.apply`: names in any case, or members of `Initializer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, StrEnum
from functools import partial

from torch import Tensor, nn

from resnet_core.foundation.suggestions import did_you_mean

WEIGHTED = (nn.Conv2d, nn.Linear)


class Initializer(StrEnum):
    """Initial values for some layers of a network; the other layers keep theirs.

    `Initializer("Kaiming_Normal")` finds a name in any case, and a member of another library's enum by its value.
    Raises ValueError for an unknown name.
    """

    KAIMING_NORMAL = "kaiming_normal"
    KAIMING_UNIFORM = "kaiming_uniform"
    XAVIER_NORMAL = "xavier_normal"
    XAVIER_UNIFORM = "xavier_uniform"
    BN_UNIFORM = "bn_uniform"
    BN_ONES = "bn_ones"
    LINEAR_LOG_CONSTANT_BIAS = "linear_log_constant_bias"

    @classmethod
    def _missing_(cls, value: object) -> Initializer:
        name, known = name_of(value), [member.value for member in cls]
        if name in known:
            return cls(name)
        raise ValueError(f"unknown initializer {value!r}; {did_you_mean(name, known)}")

    def get_initializer(self) -> Callable[[nn.Module], None]:
        """The function for `model.apply`: it initializes one module in place."""
        return INITIALIZERS[self]


def name_of(initializer: object) -> str:
    """The name of a string or of an enum's member, in lower case."""
    return str(initializer.value if isinstance(initializer, Enum) else initializer).lower()


def weighted_layers(fill: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    """Fills the weights of a convolution or linear layer; its bias keeps its values."""
    if isinstance(module, WEIGHTED):
        fill(module.weight)


def batch_norm(fill: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    """Fills the scale of a BatchNorm and sets its shift to 0."""
    if isinstance(module, nn.BatchNorm2d) and module.affine:
        fill(module.weight)
        nn.init.zeros_(module.bias)


def linear_log_constant_bias(module: nn.Module) -> None:
    """Sets a linear layer's bias to -log(out_features), so that the sigmoids of all classes start near 1 in total."""
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.constant_(module.bias, -math.log(module.out_features))


INITIALIZERS: dict[Initializer, Callable[[nn.Module], None]] = {
    Initializer.KAIMING_NORMAL: partial(weighted_layers, nn.init.kaiming_normal_),  # fan-in
    Initializer.KAIMING_UNIFORM: partial(weighted_layers, nn.init.kaiming_uniform_),
    Initializer.XAVIER_NORMAL: partial(weighted_layers, nn.init.xavier_normal_),
    Initializer.XAVIER_UNIFORM: partial(weighted_layers, nn.init.xavier_uniform_),
    Initializer.BN_UNIFORM: partial(batch_norm, nn.init.uniform_),  # 0 to 1
    Initializer.BN_ONES: partial(batch_norm, nn.init.ones_),
    Initializer.LINEAR_LOG_CONSTANT_BIAS: linear_log_constant_bias,
}
