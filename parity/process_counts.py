"""`python -m parity.process_counts`: the same training on 1, 2 and 4 processes, with each BatchNorm setting."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core import BasicBlock
from resnet_core.data import EvalLoader, Split, TrainLoader
from resnet_core.models.resnet import conv1x1, conv3x3
from resnet_core.train import TrainConfig, Trainer, World, join_world, launch
from resnet_core.train.metrics import classification_sums

SIZES = (1, 2, 4)
STEPS, EPOCHS, BATCH, SIZE, CLASSES = 10, 3, 8, 12, 5

Norm = Callable[[int], nn.Module]


def network(norm: Norm) -> nn.Module:
    """A residual network with both kinds of shortcut, `[N, 3, H, W] -> [N, CLASSES]`, in float64.

    In float32 training amplifies each rounding, by how much depends on the machine: 1e-6 would prove nothing.
    """
    torch.manual_seed(0)
    return nn.Sequential(
        conv3x3(3, 8),
        norm(8),
        nn.ReLU(),
        BasicBlock(8, 8, norm_layer=norm),
        BasicBlock(8, 16, 2, nn.Sequential(conv1x1(8, 16, 2), norm(16)), norm_layer=norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    ).double()


class FrozenBatchNorm(nn.BatchNorm2d):
    """BatchNorm that keeps its statistics in training, too, so that each sample is computed by itself."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


def frozen() -> nn.Module:
    """The network with the statistics of random images."""
    moving, still = network(partial(nn.BatchNorm2d, momentum=1.0)), network(FrozenBatchNorm)
    moving(torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).double())
    still.load_state_dict(moving.state_dict())
    return still


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "without BatchNorm": lambda: network(nn.Identity),
    "with BatchNorm": lambda: network(nn.BatchNorm2d),
    "with frozen BatchNorm": frozen,
}


def make_trainer(model: nn.Module, world: World, *, global_batch: int = BATCH, accumulation: int = 1) -> Trainer:
    """SGD with momentum on random images, of which each epoch skips the last three: they fill no batch."""
    generator = torch.Generator().manual_seed(1)
    samples = STEPS * BATCH + 3
    split = Split(torch.randn(samples, 3, SIZE, SIZE, generator=generator).double(), torch.arange(samples) % CLASSES)
    shared = {"rank": world.rank, "world_size": world.size}
    return Trainer(
        TrainConfig(epochs=EPOCHS, accumulation=accumulation),
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4),
        world=world,
        loss_fn=F.cross_entropy,
        lr_fn=lambda step: 0.05,
        train_loader=TrainLoader(split, augment=lambda image, _: image, global_batch=global_batch, seed=7, **shared),
        eval_loader=EvalLoader(split, batch=BATCH, **shared),
        score_fn=classification_sums,
    )


def trained(trainer: Trainer) -> dict[str, Tensor]:
    """The loss of each step, and all weights after the last one as one vector."""
    losses = torch.tensor([step.loss for step in trainer.steps()], dtype=torch.float64)
    return {"losses": losses, "weights": torch.cat([each.detach().flatten() for each in trainer.model.parameters()])}


class Difference(NamedTuple):
    """The largest difference of one world's training from one process's."""

    losses: float
    weights: float


def difference(many: dict[str, Tensor], one: dict[str, Tensor]) -> Difference:
    return Difference(*((many[key] - one[key]).abs().max().item() for key in Difference._fields))


def train_all(world: World, folder: Path) -> None:
    """Trains each network as one process of the world; rank 0 writes the files that `read` reads."""
    for name, build in NETWORKS.items():
        result = trained(make_trainer(build(), world))
        if world.is_main:
            save_file(result, folder / f"{name}.safetensors")


def read(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {name: load_file(folder / f"{name}.safetensors") for name in NETWORKS}


def as_rank(folder: Path) -> int:
    with join_world("cpu") as world:
        train_all(world, folder)
    return 0


def main() -> int:
    argparse.ArgumentParser(prog="python -m parity.process_counts", description=__doc__).parse_args()
    worlds = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            if status := launch(as_rank, (Path(folder),), size):
                return status
            worlds[size] = read(Path(folder))

    print(f"{STEPS * EPOCHS} steps, the largest difference from one process of a loss and of a weight")
    print(f"{'processes':<24}{''.join(f'{size:<20}' for size in SIZES)}".rstrip())
    for name in NETWORKS:
        found = [difference(world[name], worlds[1][name]) for world in worlds.values()]
        print(f"{name:<24}{''.join(f'{each.losses:<9.1e} {each.weights:<10.1e}' for each in found)}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
