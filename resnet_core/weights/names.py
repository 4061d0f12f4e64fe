"""Naming schemes: what other libraries call our modules and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from resnet_core.models.resnet import TABLE_1

# Our modules -> theirs. The digit after a field says at which number it starts: {stage1} counts the stages 1, 2, 3, 4,
# {stage0} counts the same ones 0, 1, 2, 3. {letter} counts layers a, b, c.
OURS = {
    "conv1": "conv1",
    "bn1": "bn1",
    "layer{stage1}.{block0}.conv{layer1}": "layer{stage1}.{block0}.conv{layer1}",
    "layer{stage1}.{block0}.bn{layer1}": "layer{stage1}.{block0}.bn{layer1}",
    "layer{stage1}.{block0}.downsample.{part0}": "layer{stage1}.{block0}.downsample.{part0}",
}
KUANGLIU = {**OURS, "layer{stage1}.{block0}.downsample.{part0}": "layer{stage1}.{block0}.shortcut.{part0}"}
SEQUENTIAL = {
    "conv1": "0",
    "bn1": "1",
    **{ours: ours.replace("layer{stage1}", "{stage4}") for ours in OURS if "stage" in ours},
}
TRANSFORMERS = {
    "conv1": "embedder.embedder.convolution",
    "bn1": "embedder.embedder.normalization",
    "layer{stage1}.{block0}.conv{layer1}": "encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.convolution",
    "layer{stage1}.{block0}.bn{layer1}": "encoder.stages.{stage0}.layers.{block0}.layer.{layer0}.normalization",
    "layer{stage1}.{block0}.downsample.0": "encoder.stages.{stage0}.layers.{block0}.shortcut.convolution",
    "layer{stage1}.{block0}.downsample.1": "encoder.stages.{stage0}.layers.{block0}.shortcut.normalization",
}
DETECTRON2 = {
    "conv1": "stem.conv1",
    "bn1": "stem.conv1.norm",
    "layer{stage1}.{block0}.conv{layer1}": "res{stage2}.{block0}.conv{layer1}",
    "layer{stage1}.{block0}.bn{layer1}": "res{stage2}.{block0}.conv{layer1}.norm",
    "layer{stage1}.{block0}.downsample.0": "res{stage2}.{block0}.shortcut",
    "layer{stage1}.{block0}.downsample.1": "res{stage2}.{block0}.shortcut.norm",
}
CAFFE2 = {
    "conv1": "conv1",
    "bn1": "res_conv1_bn",
    "layer{stage1}.{block0}.conv{layer1}": "res{stage2}_{block0}_branch2{letter}",
    "layer{stage1}.{block0}.bn{layer1}": "res{stage2}_{block0}_branch2{letter}_bn",
    "layer{stage1}.{block0}.downsample.0": "res{stage2}_{block0}_branch1",
    "layer{stage1}.{block0}.downsample.1": "res{stage2}_{block0}_branch1_bn",
}
KERAS = {
    "conv1": "conv1_conv",
    "bn1": "conv1_bn",
    "layer{stage1}.{block0}.conv{layer1}": "conv{stage2}_block{block1}_{layer1}_conv",
    "layer{stage1}.{block0}.bn{layer1}": "conv{stage2}_block{block1}_{layer1}_bn",
    "layer{stage1}.{block0}.downsample.0": "conv{stage2}_block{block1}_0_conv",
    "layer{stage1}.{block0}.downsample.1": "conv{stage2}_block{block1}_0_bn",
}


# A Keras layer's variables -> a torch module's tensors. A convolution's bias goes into the BatchNorm after it.
KERAS_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The endings of Caffe2's blobs -> a torch module's tensors.
CAFFE2_VARIABLES = {
    "w": "weight",
    "b": "bias",
    "s": "weight",
    "gamma": "weight",
    "beta": "bias",
    "rm": "running_mean",
    "riv": "running_var",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
CAFFE2_BLOB = re.compile(rf"(.+?)_({'|'.join(CAFFE2_VARIABLES)})")
EPSILON = 1e-5  # that torch's BatchNorm adds to the variance


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one library names the modules of a ResNet."""

    modules: Mapping[str, str]
    heads: tuple[str, ...]
    """Names of the classifier, counted from the body's prefix, or from the prefix that the whole network has."""
    prefix: str = ""
    """What the library's own classifier has before the names of its body."""
    stride_in_1x1: bool = False
    """Whether that library's Bottlenecks have their stride on the first 1x1, which no file shows."""


SCHEMES: dict[str, Scheme] = {
    "torchvision": Scheme(modules=OURS, heads=("fc", "linear", "head.fc", "head", "classifier", "last_linear")),
    "kuangliu": Scheme(modules=KUANGLIU, heads=("linear", "fc")),
    "transformers": Scheme(modules=TRANSFORMERS, heads=("classifier.1", "classifier"), prefix="resnet."),
    "detectron2": Scheme(modules=DETECTRON2, heads=("linear", "fc"), stride_in_1x1=True),
    "caffe2": Scheme(modules=CAFFE2, heads=("fc1000", "pred"), stride_in_1x1=True),
    "keras": Scheme(modules=KERAS, heads=("predictions",), stride_in_1x1=True),
    "sequential": Scheme(modules=SEQUENTIAL, heads=("9", "fc")),
}
"""Recognised by the name of the first convolution of the first block, in this order."""

ANCHOR = "layer1.0.conv1"
COUNTERS = {"total_ops", "total_params"}  # that profilers leave in a network
MOST_STAGES = 4
MOST_BLOCKS = max(max(depths) for _, depths in TABLE_1.values())


@dataclass(frozen=True, kw_only=True)
class Body:
    """The tensors of one network in a file, under our names and without a head."""

    scheme: str
    prefix: str
    tensors: dict[str, Tensor]
    beside: dict[str, Tensor]
    """Tensors under the prefix that the scheme has no name for, without the prefix."""


@cache
def our_modules(scheme: str) -> Mapping[str, str]:
    """Their modules -> ours, for every block that any of our networks has."""
    names: dict[str, str] = {}
    for stage, block, layer, part in product(range(MOST_STAGES), range(MOST_BLOCKS), range(3), range(2)):
        numbers = {"stage": stage, "block": block, "layer": layer, "part": part}
        counted = {f"{what}{first}": number + first for what, number in numbers.items() for first in range(5)}
        fields = {**counted, "letter": "abc"[layer]}
        names |= {theirs.format(**fields): ours.format(**fields) for ours, theirs in SCHEMES[scheme].modules.items()}
    return names


def fold_caffe2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's blobs as torch's tensors, under Caffe2's layer names; other tensors as they are.

    A BatchNorm of which only scale and shift were kept gets mean 0 and the variance to which torch's epsilon adds up to
    1, so it computes the same in evaluation. A convolution's bias is subtracted from the mean.
    """
    if "res2_0_branch2a_w" not in tensors:
        return dict(tensors)

    folded: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = CAFFE2_BLOB.fullmatch(name)
        layer, blob = match.groups() if match else (name, "")
        norm = "res_conv1_bn" if layer == "conv1" else f"{layer}_bn"
        if blob == "b" and {f"{norm}_s", f"{norm}_gamma"} & tensors.keys():
            biases[norm] = value
        else:
            folded[f"{layer}.{CAFFE2_VARIABLES[blob]}" if match else name] = value

    for norm in [name.removesuffix(".weight") for name in folded if name.endswith("_bn.weight")]:
        scale = folded[f"{norm}.weight"]
        mean = folded.get(f"{norm}.running_mean", torch.zeros_like(scale))
        folded[f"{norm}.running_mean"] = mean - biases[norm] if norm in biases else mean
        folded.setdefault(f"{norm}.running_var", torch.full_like(scale, 1 - EPSILON))
    return folded


def find_bodies(tensors: Mapping[str, Tensor]) -> list[Body]:
    """Each network's body in these tensors: one for each prefix under which the first block of a scheme begins."""
    bodies: dict[str, Body] = {}
    for scheme in SCHEMES:
        anchor = f"{their_module(scheme, ANCHOR)}.weight"
        for key in tensors:
            prefix = key.removesuffix(anchor)
            if key.endswith(anchor) and (not prefix or prefix.endswith(".")):
                body = take_body(tensors, scheme, prefix)
                if key not in bodies or len(body.tensors) > len(bodies[key].tensors):
                    bodies[key] = body  # two schemes may share the first block's names
    return list(bodies.values())


def take_body(tensors: Mapping[str, Tensor], scheme: str, prefix: str) -> Body:
    ours = our_modules(scheme)
    found: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        module, _, last = name.rpartition(".")
        if module in ours and last not in COUNTERS:
            found[f"{ours[module]}.{last}"] = as_count(value) if last == "num_batches_tracked" else value
        elif last not in COUNTERS:
            beside[name] = value
    return Body(scheme=scheme, prefix=prefix, tensors=found, beside=beside)


def as_count(value: Tensor) -> Tensor:
    """A BatchNorm's count of batches as an integer, which casting or averaging a whole state dict made floating."""
    return value.long() if value.is_floating_point() and bool(value.isfinite().all()) else value


def their_module(scheme: str, ours: str) -> str:
    return next(theirs for theirs, our in our_modules(scheme).items() if our == ours)


def their_names(scheme: str, names: Iterable[str]) -> dict[str, str]:
    """Our state-dict names -> those of the library's own classifier; their last part (`weight`, ..) is ours."""
    row = SCHEMES[scheme]
    modules = {ours: f"{row.prefix}{theirs}" for theirs, ours in our_modules(scheme).items()} | {"fc": row.heads[0]}
    return {name: ".".join((modules[name.rpartition(".")[0]], name.rpartition(".")[2])) for name in names}
