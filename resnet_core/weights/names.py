"""Naming schemes: what other libraries call our modules and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

import torch
from torch import Tensor

from resnet_core.models.resnet import TABLE_1

# Our modules -> theirs. The digit after a field says at which number it starts: {stage1} counts the stages 1, 2, 3, 4,
# {stage0} counts the same ones 0, 1, 2, 3.
TRANSFORMERS = {
    "conv1": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "layer{stage1}.{block0}.conv{layer1}": "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.convolution",
    "layer{stage1}.{block0}.bn{layer1}": "resnet.encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.normalization",
    "layer{stage1}.{block0}.downsample.0": "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.convolution",
    "layer{stage1}.{block0}.downsample.1": "resnet.encoder.stages.{stage0}.layers.{block0}.shortcut.normalization",
    "fc": "classifier.1",
}
KERAS = {
    "conv1": "conv1_conv",
    "bn1": "conv1_bn",
    "layer{stage1}.{block0}.conv{layer1}": "conv{stage2}_block{block1}_{layer1}_conv",
    "layer{stage1}.{block0}.bn{layer1}": "conv{stage2}_block{block1}_{layer1}_bn",
    "layer{stage1}.{block0}.downsample.0": "conv{stage2}_block{block1}_0_conv",
    "layer{stage1}.{block0}.downsample.1": "conv{stage2}_block{block1}_0_bn",
    "fc": "predictions",
}
SAME = {ours: ours for ours in TRANSFORMERS}
COMPOSER = {ours: f"module.{ours}" for ours in TRANSFORMERS}

MODULES = {"torchvision": SAME, "timm": SAME, "transformers": TRANSFORMERS, "composer": COMPOSER, "keras": KERAS}

# A Keras layer's variables -> a torch module's tensors. A convolution's bias goes into the BatchNorm after it.
KERAS_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def their_names(source: str, names: Iterable[str]) -> dict[str, str]:
    """Our state-dict names -> the source's, whose last part (`weight`, `running_mean`) is ours."""
    most_blocks = max(max(depths) for _, depths in TABLE_1.values())

    modules: dict[str, str] = {}
    for stage, block, layer in product(range(4), range(most_blocks), range(3)):
        numbers = {"stage": stage, "block": block, "layer": layer}
        fields = {f"{what}{first}": number + first for what, number in numbers.items() for first in range(3)}
        modules |= {ours.format(**fields): theirs.format(**fields) for ours, theirs in MODULES[source].items()}

    return {name: ".".join((modules[name.rpartition(".")[0]], name.rpartition(".")[2])) for name in names}


def convert_names(tensors: Mapping[str, Tensor], source: str, names: Iterable[str]) -> dict[str, Tensor]:
    """The source's tensors under our names, where it has them; a BatchNorm without a count of batches gets 0."""
    converted = {}
    for ours, theirs in their_names(source, names).items():
        if theirs in tensors:
            converted[ours] = tensors[theirs]
        elif ours.endswith(".num_batches_tracked"):
            converted[ours] = torch.tensor(0)
    return converted
