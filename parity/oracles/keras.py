"""keras.applications' ResNets on the torch backend: the paper's v1, written apart from torch's ResNets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parity.oracles.oracle import Oracle, noise
from resnet_core.builders import get_model
from resnet_core.comparison.trace import calibrate
from resnet_core.weights.files import load_weights
from resnet_core.weights.libraries import IMAGE_SIZE, fold_keras
from resnet_core.weights.names import their_names

NETWORKS = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}
V1 = {"stride_in_1x1": True}


class ChannelsFirst(nn.Module):
    """A Keras network as torch's are called: `[N, 3, H, W]` -> logits, training or not as the module is."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with library().device("cpu:0"):
            return self.network(images.permute(0, 2, 3, 1), training=self.training)


def library() -> Any:
    """Keras, on the torch backend unless the environment names another."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # read at keras' first import
    import keras

    return keras


def build(name: str, image_size: int = IMAGE_SIZE, activation: str | None = None, **options: Any) -> Any:
    """keras.applications' network, as it starts; without its final softmax unless `activation` asks for it."""
    keras = library()
    options = {"input_shape": (image_size, image_size, 3), "classifier_activation": activation} | options
    with keras.device("cpu:0"):
        return getattr(keras.applications, NETWORKS[name])(weights=None, **options)


@torch.no_grad()
def trained(network: Any, image_size: int = IMAGE_SIZE) -> Any:
    """The network with what training leaves: biases that are not zero, and statistics of random images."""
    for layer in network.layers:
        if layer.name.endswith("_conv"):
            layer.bias.assign(torch.randn(layer.bias.shape))
        elif layer.name.endswith("_bn"):
            layer.momentum = 0.5  # with one batch's statistics alone, float32 itself is 6e-5 from float64
    calibrate(ChannelsFirst(network), noise(4, image_size))
    return network


def variables(network: Any) -> dict[str, Tensor]:
    """Keras' weights and statistics by their paths, as `fold_keras` takes them."""
    return {variable.path: torch.as_tensor(variable.value).detach().clone() for variable in network.weights}


def converted(name: str, values: Mapping[str, Tensor], **config: Any) -> nn.Module:
    """Our model with Keras' weights, in evaluation mode."""
    ours = get_model(name, **config)
    folded = fold_keras(values)
    names = their_names("keras", ours.state_dict())
    load_weights(ours, {new: folded[old] for new, old in names.items() if old in folded})
    return ours.eval()


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours as v1 with Keras' weights, and Keras' network."""
    library().utils.set_random_seed(torch.randint(2**31, ()).item())  # its layers draw from Python's generator
    network = trained(build(name))
    return converted(name, variables(network), **V1), ChannelsFirst(network).eval()


ORACLE = Oracle(
    package="keras",
    models=tuple(NETWORKS),
    config=V1,
    pair=pair,
    deviations=(
        "Keras: v1",
        "Keras: biased convolutions",
        "Keras: eps",
        "Keras: momentum",
        "Keras: biased variance",
        "Keras: initialisation",
        "Keras: softmax",
    ),
)
