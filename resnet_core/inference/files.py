"""A network over many image files: prepared in batches by worker processes, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from resnet_core.data.images import ImageError, read_image
from resnet_core.data.loaders import KeyedLoader
from resnet_core.data.sampler import rank_share
from resnet_core.data.transforms import ImageTransform
from resnet_core.train import World

R = TypeVar("R")


@torch.inference_mode()
def results_of_files(
    model: nn.Module,
    results_of: Callable[[Tensor], Sequence[R]],
    transform: ImageTransform,
    paths: Sequence[Path],
    *,
    batch: int = 32,
    workers: int = 0,
    world: World | None = None,
) -> list[R | ImageError]:
    """For each image file, in order, a result or, where it is not a whole image, the ImageError; on every rank.

    `results_of(outputs)` makes a batch of the network's outputs into a result for each sample. Each rank computes its
    share of the files in batches of `batch`, which `workers` processes prepare. A terminal shows a progress bar.
    """
    world = world or World()
    model = model.to(world.device)
    mine = rank_share(len(paths), rank=world.rank, world_size=world.size)
    batches = [[paths[number] for number in mine[start : start + batch]] for start in range(0, len(mine), batch)]
    workers = workers if len(batches) > 1 else 0
    loader = KeyedLoader(partial(pixels_or_errors, transform), workers=workers)

    def results_of_this_rank() -> list[R | ImageError]:
        found: list[R | ImageError] = []
        for prepared in with_bar(loader.iterate(batches), len(batches), shown=world.is_main):
            images = [each for each in prepared if isinstance(each, Tensor)]
            results = iter(results_of(model(torch.stack(images).to(world.device))) if images else ())
            found += [next(results) if isinstance(each, Tensor) else each for each in prepared]
        return found

    every_rank = world.gather(world.gather_or_raise(results_of_this_rank))
    results: list[Any] = [None] * len(paths)
    for rank, found in enumerate(every_rank):
        results[rank :: world.size] = found
    return results


def with_bar(items: Iterable[R], total: int, *, shown: bool = True) -> Iterable[R]:
    """The items; where there is a terminal, a progress bar shows how far they have come."""
    console = Console(stderr=True)
    return track(items, "images", total, console=console, transient=True, disable=not (shown and console.is_terminal))


def pixels_or_errors(transform: ImageTransform, paths: Sequence[Path]) -> list[Tensor | ImageError]:
    """Each file's pixels `[C, H, W]`, or the ImageError."""
    found: list[Tensor | ImageError] = []
    for path in paths:
        try:
            found.append(transform(read_image(path, transform.bits)))
        except ImageError as error:
            found.append(error)
    return found
