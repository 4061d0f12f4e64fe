"""Hugging Face's ResNetForImageClassification: other names, the same bits once it has the same weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from parity.oracles.oracle import Oracle
from resnet_core.models.resnet import TABLE_1, Bottleneck


def classifier(name: str, **options: Any) -> Any:
    """Their model of that name as theirs are called: it returns an output that has `logits`."""
    import transformers

    block, depths = TABLE_1[name]
    config = transformers.ResNetConfig(
        depths=list(depths),
        hidden_sizes=[planes * block.expansion for planes in (64, 128, 256, 512)],
        layer_type="bottleneck" if block is Bottleneck else "basic",
        **options,
    )
    return transformers.ResNetForImageClassification(config)


def build(name: str, **options: Any) -> nn.Module:
    """The model itself, so that its modules keep their names, with a hook that hands out the logits alone."""
    network = classifier(name, num_labels=1000, **options)
    network.register_forward_hook(lambda module, inputs, output: output.logits)
    return network


ORACLE = Oracle(
    package="transformers",
    models=tuple(TABLE_1),
    build=build,
    source="transformers",
    deviations=("transformers: initialisation", "transformers: v1 on request"),
)
