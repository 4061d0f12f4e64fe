"""Commands on networks: list and describe them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.describe import describe as describe_model
from resnet_core.models.registry import MODELS, build_on_meta, list_models


@dataclass(frozen=True)
class Models:
    """List the models and their numbers of parameters.

    Example: `resnet-core models 'wide_*'`
    """

    pattern: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PATTERN]")] = "*"
    """A shell pattern that the names must match, such as "resnet*"."""

    def __call__(self) -> None:
        names = list_models(self.pattern)
        if not names:
            within = f"*{self.pattern}*"
            remedy = f"did you mean {within!r}?" if list_models(within) else did_you_mean(self.pattern, MODELS)
            raise ValueError(f"no model matches {self.pattern!r}; {remedy}")
        for name in sorted(names, key=list(MODELS).index):  # Table 1 first
            parameters = sum(parameter.numel() for parameter in build_on_meta(name).parameters())
            print(f"{name:<18}{parameters:>13,} parameters")


@dataclass(frozen=True)
class Describe:
    """Show a model as the paper's Table 1: shapes, parameters, multiply-adds, receptive fields.

    Example: `resnet-core describe resnet50 --image-size 288`
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A model's name, as `resnet-core models` lists it."""
    image_size: int = 224
    """Height and width of the image in pixels."""
    json: bool = False
    """Print the description as JSON."""

    def __call__(self) -> None:
        description = describe_model(self.model, self.image_size)
        print(description.to_json() if self.json else description)
