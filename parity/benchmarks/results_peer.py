"""`python -m parity.benchmarks.results_peer --data DIR`: another implementation's ResNet-20 under our trainer.

The recipe is `cifar10_fast`.

The network is pytorchcv's `resnet20_cifar10` (shortcut B, 272,474 parameters), from its own initial weights. Its last
pool has a fixed kernel of 8x8 and cannot take the recipe's small images: the global one stands in its place.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.recipes.experiment import load
from resnet_core.runs.folder import RunFolder
from resnet_core.runs.training import record_environment, result_of
from resnet_core.train import join_world
from resnet_core.train.report import Report


def network(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """pytorchcv's ResNet-20."""
    from pytorchcv.models.resnet_cifar import resnet20_cifar10

    model: nn.Module = resnet20_cifar10(num_classes=num_classes, in_channels=in_channels)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity.benchmarks.results_peer", description="Train pytorchcv's ResNet-20 on CIFAR-10."
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="CIFAR-10, as `resnet-core train cifar10_fast` takes it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    arguments = parser.parse_args()
    recipe = RECIPES["cifar10_fast"]
    recipe = replace(recipe, seed=arguments.seed, data=replace(recipe.data, path=arguments.data))

    experiment = load(recipe)
    with join_world("cpu") as world, RunFolder(arguments.out) as folder:
        folder.claim(experiment)
        report = Report(arguments.out)
        trainer = make_trainer(experiment, world, build=network, report=report, folder=arguments.out)
        record_environment(folder, experiment, world, report, continues=False)
        result = result_of(trainer, trainer.fit())
        folder.write_result(result)
    print(f"{arguments.out}: top-1 {result['top1']:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
