"""Flax's ImageNet example, as far as it pads: its `examples/imagenet/models.py` in layers of Keras.

Flax needs JAX, more than this project wants to install for one fact. Keras' `padding="same"` is the same rule,
TensorFlow's: where the size is even, a stride of 2 pads one pixel less before than torch does. The stem has its
padding written out as (3, 3), as in torch; the max-pool and the blocks' convolutions have SAME. That source starts
each block's last BatchNorm at zero, too, as timm's does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from parity.oracles.keras import ChannelsFirst, library
from resnet_core.weights.names import KERAS_VARIABLES, their_names

STAGES = ((2, 64, 1), (3, 128, 2), (4, 256, 2), (5, 512, 2))  # the paper's number, width, stride


def network(*, bottleneck: bool, classes: int, image_size: int) -> Any:
    """One block in each stage, without weights. Its layers have the names that keras.applications gives them."""
    layers = library().layers
    activation = partial(layers.Activation, "relu")

    def convolved(x: Any, name: str, width: int, size: int, stride: int, padding: str = "same") -> Any:
        options = {"padding": padding, "use_bias": False, "name": f"{name}_conv"}
        x = layers.Conv2D(width, size, stride, **options)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    inputs = library().Input((image_size, image_size, 3))
    x = layers.ZeroPadding2D(3)(inputs)
    x = activation()(convolved(x, "conv1", 64, 7, 2, "valid"))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for number, width, stride in STAGES:
        block = f"conv{number}_block1"
        out = 4 * width if bottleneck else width
        plan = [(width, 1, 1), (width, 3, stride), (out, 1, 1)] if bottleneck else [(width, 3, stride), (width, 3, 1)]
        y = x
        for layer, (channels, size, step) in enumerate(plan, 1):
            y = convolved(y, f"{block}_{layer}", channels, size, step)
            y = activation()(y) if layer < len(plan) else y
        if x.shape != y.shape:
            x = convolved(x, f"{block}_0", out, 1, stride)
        x = activation()(layers.Add(dtype="float64")([x, y]))
    x = layers.GlobalAveragePooling2D(dtype="float64")(x)
    x = layers.Dense(classes, name="predictions")(x)
    return library().Model(inputs, x)


@torch.no_grad()
def twin(ours: nn.Module, *, bottleneck: bool, classes: int, image_size: int) -> nn.Module:
    """The network with our weights, in evaluation mode."""
    with library().device("cpu:0"):
        theirs = network(bottleneck=bottleneck, classes=classes, image_size=image_size)
    state = ours.state_dict()
    tensors = {new: state[name] for name, new in their_names("keras", state).items()}
    for variable in theirs.weights:
        layer, _, kind = variable.path.rpartition("/")
        value = tensors[f"{layer}.{KERAS_VARIABLES[kind]}"]
        variable.assign(value.permute(2, 3, 1, 0) if value.dim() == 4 else value.T)  # OIHW -> HWIO
    return ChannelsFirst(theirs).eval()
