"""The models by name, without weights: `build("resnet50")`, `list_models("resnet*")`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resnet_core.foundation.suggestions import check_keywords, did_you_mean
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import TABLE_1, WIDER


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of MODELS: a network's class and the arguments that make it this model."""

    network: type[nn.Module]
    arguments: tuple[Any, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that the caller may not change."""
    base: str = ""
    """The model that leaves them to the caller."""


MODELS: dict[str, Model] = {
    **{name: Model(network=Backbone, arguments=row) for name, row in TABLE_1.items()},
    **{
        name: Model(network=Backbone, arguments=TABLE_1[base], config=config, base=base)
        for name, (base, config) in WIDER.items()
    },
    **{f"cifar_resnet{6 * n + 2}": Model(network=CifarResNet, arguments=(n,)) for n in (3, 5, 7, 9, 18)},
}


def build(name: str, **config: Any) -> nn.Module:
    """The network with this name (in any case) and random weights; `config` goes to its constructor.

    Raises ValueError for an unknown name, with the nearest known ones, and for an argument that makes it another model;
    TypeError for a count that is not a whole number.
    """
    model = find_model(name)
    for key in ("num_classes", "in_channels", "groups"):
        if not isinstance(config.get(key, 1), SupportsIndex):
            raise TypeError(f"{name}() takes a whole number as {key}, got {config[key]!r}")
    return model.network(*model.arguments, **constructor_config(name, config))


def build_on_meta(name: str, **config: Any) -> nn.Module:
    """The same network on the meta device: shapes and types without values, at once and without memory."""
    return on_meta(lambda: build(name, **config))


def on_meta(function: Callable[[], nn.Module]) -> nn.Module:
    """The network that a function of ours builds, on the meta device."""
    with torch.device("meta"), _WithoutInitialValues():
        return function()


class _WithoutInitialValues(TorchFunctionMode):
    """Skips random initial values. On the meta device they change nothing, but torch imports 900 modules for them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return None
        return func(*args, **(kwargs or {}))


def find_model(name: str) -> Model:
    """The row of MODELS for a name in any case. Raises ValueError for an unknown one, with the nearest known ones."""
    model = MODELS.get(str(name).lower())
    if model is None:
        raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
    return model


def check_arguments(name: str, config: Iterable[str], *, more: Iterable[str] = ()) -> None:
    """Raises TypeError for a keyword that neither the model's constructor takes nor `more` names, with the nearest."""
    model = find_model(name)
    constructors = list(signature(model.network).parameters)[len(model.arguments) :]
    check_keywords(name, config, [*more, *constructors])


def constructor_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the arguments that the model fixes. Raises ValueError if `config` has another value of one."""
    model = find_model(name)
    for key, value in model.config.items():
        if config.get(key, value) != value:
            raise ValueError(f"{name} has {key}={value}, got {key}={config[key]}; for another value build {model.base}")
    return {**config, **model.config}


def list_models(include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None) -> list[str]:
    """Sorted model names that match `include` and not `exclude`, each a shell pattern such as "resnet*" or several."""
    included = _matching(include) if include else set(MODELS)
    excluded = _matching(exclude) if exclude else set()
    return sorted(included - excluded)


def _matching(patterns: str | Iterable[str]) -> set[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    return {name for name in MODELS if any(fnmatchcase(name, pattern) for pattern in patterns)}
