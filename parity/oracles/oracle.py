"""What is known of one library's ResNet, and how weights reach it by names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.builders import get_model
from resnet_core.comparison.trace import calibrate
from resnet_core.weights.files import load_weights
from resnet_core.weights.libraries import IMAGE_SIZE
from resnet_core.weights.names import their_names

Build = Callable[[str], nn.Module]
Pair = Callable[[str], tuple[nn.Module, nn.Module]]


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Another implementation of our models, to compare ours with. It has either `build` or `pair`.

    Nothing is imported before one of them is called. Both leave the networks' random numbers to the caller's seed.
    """

    package: str
    """The distribution and its module, which have one name."""
    models: tuple[str, ...]
    """Names of our models that it has, too."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What ours is built with to be the same network."""
    build: Build | None = None
    """A model's name -> their network, `[N, 3, H, W]` -> logits `[N, 1000]`, of torch modules that match ours."""
    source: str | None = None
    """The row of `resnet_core.weights.names.SCHEMES` that maps our names to those of `build`'s network."""
    pair: Pair | None = None
    """For a network without such modules: a model's name -> ours and theirs, in evaluation mode and with the same
    weights, for images of `IMAGE_SIZE` pixels."""
    deviations: tuple[str, ...] = ()
    """Keys of `parity.oracles.ledger.LEDGER`: what differs unless ours is asked for the same."""
    known: Mapping[str, str] = field(default_factory=dict)
    """Rungs of the ladder that differ for that reason -> the key."""

    def __post_init__(self) -> None:
        if (self.build is None) == (self.pair is None):
            raise ValueError(f"an oracle has either build or pair, {self.package} has both or none; give one of them")
        if (self.build is None) != (self.source is None):
            raise ValueError(f"source names the modules of build's network; give {self.package} both, or none of them")

    def is_installed(self) -> bool:
        return find_spec(self.package) is not None

    def networks(self, name: str) -> tuple[nn.Module, nn.Module]:
        """Ours and theirs in evaluation mode, with the same weights and the statistics of random images."""
        if self.pair is not None:
            return self.pair(name)
        assert self.build is not None
        assert self.source is not None
        ours, theirs = get_model(name, **self.config), self.build(name)
        calibrate(ours, noise(4))
        load_by_names(theirs, ours, self.source)
        return ours, theirs.eval()


def noise(batch: int, image_size: int = IMAGE_SIZE) -> Tensor:
    """Random images from the caller's seed."""
    return torch.randn(batch, 3, image_size, image_size)


@torch.no_grad()
def load_by_names(theirs: nn.Module, ours: nn.Module, source: str) -> None:
    """Copies our network's weights and statistics into theirs; each of their tensors must get one."""
    state = ours.state_dict()
    load_weights(theirs, {new: state[name] for name, new in their_names(source, state).items()})
