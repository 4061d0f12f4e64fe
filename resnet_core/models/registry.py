"""Model names and the networks they stand for, without weights: `build("resnet50")`, `list_models("resnet*")`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import TABLE_1, WIDER


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of MODELS: what is called to build the network."""

    network: type[nn.Module]
    arguments: tuple[Any, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that make it this model."""
    base: str = ""
    """The model that takes other values of these."""


MODELS: dict[str, Model] = {
    **{name: Model(network=Backbone, arguments=row) for name, row in TABLE_1.items()},
    **{
        name: Model(network=Backbone, arguments=TABLE_1[base], config=config, base=base)
        for name, (base, config) in WIDER.items()
    },
    **{f"cifar_resnet{6 * n + 2}": Model(network=CifarResNet, arguments=(n,)) for n in (3, 5, 7, 9, 18)},
}


def build(name: str, **config: Any) -> nn.Module:
    """The network that `name` (in any case) stands for, with random weights; `config` goes to its constructor.

    Raises ValueError for an unknown name, with the nearest known ones, and for an argument that makes it another model.
    """
    model = find_model(name)
    return model.network(*model.arguments, **constructor_config(name, config))


def find_model(name: str) -> Model:
    """The row of a name in any case. Raises ValueError for an unknown one, with the nearest known ones."""
    model = MODELS.get(str(name).lower())
    if model is None:
        raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return model


def constructor_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what the model fixes. Raises ValueError for an argument that makes it another model."""
    model = find_model(name)
    for key, value in model.config.items():
        if config.get(key, value) != value:
            raise ValueError(f"{name} has {key}={value}, got {key}={config[key]}; for another value build {model.base}")
    return {**config, **model.config}


def list_models(include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None) -> list[str]:
    """Sorted model names; `include` and `exclude` are shell patterns (or several), as `"resnet*"`, and exclude wins."""
    return [name for name in sorted(MODELS) if _matches(name, include, True) and not _matches(name, exclude, False)]


def _matches(name: str, patterns: str | Iterable[str] | None, if_none: bool) -> bool:
    if not patterns:
        return if_none
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))
