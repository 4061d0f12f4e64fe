"""A recipe: all settings of an experiment, in one frozen object that TOML can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from resnet_core.data import DataConfig
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.foundation.toml import from_mapping, merged, read_toml
from resnet_core.models.registry import MODELS
from resnet_core.recipes.losses import LossConfig
from resnet_core.train import RunConfig, TrainConfig
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.optimizers import OptimizerConfig
from resnet_core.train.schedules import Schedule, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    """A name of `resnet-core models`."""
    weights: str = ""
    """What to start from: a run's folder, a file of weights, published weights as resnet50:IMAGENET1K_V2; none: random.
    Where the number of classes is another, the head is new."""

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"model.name: unknown model {self.name!r}; {did_you_mean(self.name, MODELS)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run's result, and in `run` what does not."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    """Of the initial weights, the order of samples and their augmentation."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        self.lr_fn(steps_per_epoch=1000)  # raises where the schedule does not fit

    def lr_fn(self, steps_per_epoch: int) -> Schedule:
        """The learning rate of each step."""
        peak, epochs = self.optimizer.lr, self.train.epochs
        return Schedule(config=self.schedule, peak=peak, steps_per_epoch=steps_per_epoch, epochs=epochs)


def overlay(recipe: Recipe, path: str | Path) -> Recipe:
    """The recipe with the values of a TOML file in place of its own. Raises ValueError naming the file and the key."""
    return from_mapping(Recipe, merged(asdict(recipe), read_toml(Path(path))), str(path))


def scaling_advice(named: Recipe, recipe: Recipe) -> str | None:
    """What the learning rate would be where only the global batch was changed (Goyal et al. 2017, arXiv:1706.02677)."""
    factor = recipe.data.global_batch / named.data.global_batch
    lr = recipe.optimizer.lr
    if factor == 1 or lr != named.optimizer.lr or recipe.optimizer.name == "lamb":
        return None
    return (
        f"data.global_batch is {factor:g} times the recipe's {named.data.global_batch} and optimizer.lr still its "
        f"{lr:g}; linear scaling would be --optimizer.lr {lr * factor:g}"
    )
