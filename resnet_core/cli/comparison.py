"""The command that compares two networks."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from resnet_core.cli.errors import DIFFERENT
from resnet_core.cli.options import check_at_least, unset
from resnet_core.comparison.compare import ALL_RUNGS, DEFAULT_RUNGS, FAST_RUNGS, Network, compare
from resnet_core.comparison.imports import with_place
from resnet_core.comparison.networks import NetworkName, load
from resnet_core.comparison.networks import read as read_name
from resnet_core.comparison.references import classes_and_channels, complete
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import build


@dataclass(frozen=True)
class Compare:
    """Compare two networks rung by rung, and find where they first differ and which known mistakes explain it.

    A network is a name of `resnet-core models`, torchvision:NAME, timm:NAME, or yours: ./mine.py for the only network
    of a file, ./mine.py:NAME, or package.module:NAME. Arguments are literals, in quotes: './mine.py:net(classes=10)'.
    Your file is imported and its function called, so your own code runs. A rung is one comparison, such as that of
    the logits.

    Example: `resnet-core compare ./mine.py:net torchvision:resnet18`
    """

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NETWORK")]
    """The network in question."""
    b: Annotated[tyro.conf.Positional[str], unset("[REFERENCE]")] = ""
    """The network to compare it with. By default the one of our models that is nearest to the first network."""
    image_size: Annotated[int | None, unset("PIXELS")] = None
    """Height and width of the random images in pixels. By default 64, or what both networks take."""
    channels: Annotated[int | None, unset("INT")] = None
    """Channels of the random images. By default those that the network takes."""
    batch: int = 2
    """How many random images, at least 2."""
    fast: bool = False
    """Compare on a few rungs only: shapes, logits and gradients."""
    all: bool = False
    """Compare on the slow rungs too: torch.compile, torch.export and ONNX."""
    skip: Annotated[tuple[str, ...], unset("RUNG ...")] = ()
    """Names of rungs to skip, such as "seeded initialisation"."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device on which both networks run."""
    diagnosis_seconds: float = 60.0
    """Seconds in which to search for the mistakes; 0 skips the search."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_at_least(1, image_size=self.image_size, channels=self.channels)
        check_at_least(2, batch=self.batch)
        if self.fast and self.all:
            raise ValueError("--fast climbs a few rungs and --all all of them; leave one of the two out")

    def __call__(self) -> int:
        sys.path.insert(0, os.getcwd())
        for name in self.skip:
            if name not in ALL_RUNGS:
                raise ValueError(
                    f"--skip {name!r} is not a rung, whose names need quotes where they have spaces; "
                    f"{did_you_mean(name, ALL_RUNGS)}"
                )
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch finds no GPU here; leave it out")
        chosen = FAST_RUNGS if self.fast else ALL_RUNGS if self.all else DEFAULT_RUNGS
        rungs = [name for name in chosen if name not in self.skip]

        names = [read_name(text) for text in ((self.a, self.b) if self.b else (self.a,))]
        with redirect_stdout(sys.stderr):  # what the user's code prints is not part of the result
            try:
                a, b = self.networks(names)
                result = compare(
                    a,
                    b,
                    self.images(a, b),
                    rungs=rungs,
                    diagnosis_seconds=self.diagnosis_seconds,
                    progress=show_progress if sys.stderr.isatty() else None,
                )
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(str(error)) from error
            except Exception as error:  # anything that the user's networks raise
                raise ValueError(f"{' and '.join(filter(None, (self.a, self.b)))}: {with_place(error)}") from error
        print(result.to_json() if self.json else result)
        return 0 if result else DIFFERENT

    def networks(self, names: list[NetworkName]) -> tuple[Network, Network | None]:
        """The networks of these names. A bare name of ours gets the classes and channels of the other network."""
        networks = [load(name) for name in names]
        if len(networks) < 2:
            return networks[0], None
        a, b = networks
        if bool(names[0].place) != bool(names[1].place):
            a = a if names[0].place else partial(build, names[0].name, **classes_and_channels(b), **names[0].keywords)
            b = b if names[1].place else partial(build, names[1].name, **classes_and_channels(a), **names[1].keywords)
        return a, b

    def images(self, a: Network, b: Network | None) -> Tensor | None:
        """Random images; None where the networks decide on their size."""
        if (self.image_size, self.channels, self.batch, self.device) == (None, None, 2, "cpu"):
            return None
        chosen = complete(a, b, None)[1] if self.image_size is None or self.channels is None else torch.zeros(1)
        channels, size = self.channels or chosen.shape[1], self.image_size or chosen.shape[-1]
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, channels, size, size, generator=generator).to(self.device)


def show_progress(text: str) -> None:
    """Writes over the last line of the terminal; no text removes it."""
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
