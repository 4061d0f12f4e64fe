"""Networks that are not ours: what sets them apart, and what loads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_core.foundation.errors import shortened
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.registry import MODELS
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet
from resnet_core.weights.arguments import assigned
from resnet_core.weights.containers import Container
from resnet_core.weights.contents import module_tensors, walk
from resnet_core.weights.folders import timm_other
from resnet_core.weights.identify import FoundNetwork, Nearest, config_of, depths, list_shapes
from resnet_core.weights.pickles import Inert

# Layers without tensors that a pickled module and a TorchScript archive name, and those of them that ours have.
LAYER_KIND = re.compile(r"\bnn\.modules\.(?:activation|pooling)\.(?:___torch_mangle_\d+\.)?(\w+)$")
OUR_LAYERS = {"ReLU", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"}


def find_foreign(container: Container, network: FoundNetwork) -> str:
    """Why the network is not one of ours, where something beside its tensors shows that; else empty."""
    for path, value in walk(container.content):
        if isinstance(value, Inert) and ".".join(path) == network.key and module_tensors(value):
            kinds = {each.kind: None for _, each in walk(value) if isinstance(each, Inert)}
            layers = [found[1] for found in map(LAYER_KIND.search, kinds) if found and found[1] not in OUR_LAYERS]
            if layers:
                file = repr(str(container.path))
                scripted = container.kind == "TorchScript archive"
                line = f"torch.jit.load({file})" if scripted else f"torch.load({file}, weights_only=False)"
                return (
                    f"{container.path} holds a module that computes {shortened(layers)}, which no network of this "
                    f"package does; if you trust the file, {line} loads it where its own code is installed"
                )
        if isinstance(value, str) and path and path[-1] in ("arch", "architecture", "model", "model_name"):
            name = value.partition(".")[0]
            if re.fullmatch(r"resnet(aa|blur)\d+", name):
                made = ", ".join([repr(name), *assigned(network.config), f"checkpoint_path={str(container.path)!r}"])
                return (
                    f"{container.path} says at {'.'.join(path)} that its network is {name}, {timm_other(name)}; timm "
                    f"loads it: timm.create_model({made})"
                )
    return ""


# Names of tensors that no ResNet of ours has -> what has them.
SIGNS = {
    r"\b(cls|class)_token\b|\bpos_embed|\battn\.|self_attention": "It is a transformer, which has attention in place "
    "of convolutions",
    r"weight_[uvg]$|\bparametrizations\.": "Its weights lie in parts, as spectral_norm and weight_norm keep them; "
    "after torch.nn.utils.remove_spectral_norm(layer), or torch.nn.utils.parametrize.remove_parametrizations(layer, "
    "'weight'), its network's state_dict() loads here",
    r"(^|\.)(conv1|stem)\.[36]\.weight$": "Its stem has several convolutions, as that of timm's resnet50d",
    r"(conv\d|downsample\.0|shortcut\.0)\.bias$": "Its convolutions have biases, which ours lack, since a BatchNorm "
    "follows each",
}


def explain(path: Path, found: Sequence[tuple[str, Mapping[str, Any]]], nearest: Nearest | None) -> str:
    """Why a file without a ResNet of ours has none: what differs first, and what loads it all the same."""
    if not found:
        return "It has no tensors with names; save model.state_dict(), with torch.save or, better, write_weights"
    lines = by_order(path, found) or by_depths(path, nearest)
    key, tensors = max(found, key=lambda each: (nearest is not None and each[0] == nearest.key, len(each[1])))
    words = nearest.words if nearest else f"Its tensors are {shortened(list(tensors))}"
    if lines:
        return words + lines

    sign = next((f". {said}" for each, said in SIGNS.items() if any(re.search(each, name) for name in tensors)), "")
    chosen = ", ".join([repr(str(path)), *assigned({"key": key} if key else {})])
    return (
        f"{words}{sign}. The library or the code that builds this network loads it: "
        f"network.load_state_dict(resnet_core.weights.read_weights({chosen})). Of a network of yours, `resnet-core "
        "compare ./FILE.py` says how it differs from the nearest of ours"
    )


def by_order(path: Path, found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """How to load tensors under unknown names that have the shapes of one of our models, in its order; else empty."""
    tensors = [value for value in found[0][1].values() if isinstance(value, Tensor) and value.dim()]
    shapes = [value.shape for value in tensors]
    if len(found) > 1 or not shapes or len(shapes[0]) != 4 or 0 in shapes[0] or len(shapes[-1]) != 1:
        return ""  # several, or no stem first, no bias last

    for model, row in MODELS.items():
        config = config_of(model, {"conv1.weight": tensors[0]}) | {"num_classes": len(tensors[-1])}
        for form in ({}, {"shortcut": "B"}) if row.network is CifarResNet else ({},):
            if shapes == [shape for shape in list_shapes(model, **config, **form).values() if shape]:
                arguments = ", ".join(assigned(config | form))
                return (
                    f". In the file's order they have {model}'s shapes; if that is the order of its modules, these "
                    f"lines load them: network = resnet_core.{model}({arguments}); names = [name for name, value in "
                    "network.state_dict().items() if value.dim()]; values = [value for value in "
                    f"resnet_core.weights.read_weights({str(path)!r}).values() if value.dim()]; "
                    "resnet_core.weights.load_weights(network, dict(zip(names, values)))"
                )
    return ""


def by_depths(path: Path, nearest: Nearest | None) -> str:
    """How to load a ResNet with other numbers of blocks than any of our models; else empty."""
    if nearest is None or nearest.body.scheme != "torchvision" or "fc.weight" not in nearest.body.beside:
        return ""
    tensors = {**nearest.body.tensors, **nearest.body.beside}
    blocks, block = depths(tensors), Bottleneck if "layer1.0.conv3.weight" in tensors else BasicBlock
    classes = len(tensors["fc.weight"])
    if len(blocks) != 4 or sum(blocks) > len(tensors):
        return ""
    with torch.device("meta"):
        ours = ResNet(block, blocks, num_classes=classes).state_dict()
    expected = {name: value.shape for name, value in ours.items() if name in tensors or value.dim()}
    if expected != {name: value.shape for name, value in tensors.items()}:
        return ""
    place = {name: value for name, value in (("key", nearest.key), ("prefix", nearest.body.prefix)) if value}
    loaded = ", ".join(["network", repr(str(path)), *assigned(place)])
    return (
        f"; these lines load them: network = resnet_core.ResNet(resnet_core.{block.__name__}, {blocks}, "
        f"num_classes={classes}); resnet_core.weights.load_weights({loaded})"
    )
