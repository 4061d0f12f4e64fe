"""A recipe: all settings of an experiment, in one frozen object that TOML can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from resnet_core.data import DataConfig
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.foundation.toml import from_mapping, merged, read_toml
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.freezing import frozen_children
from resnet_core.models.registry import MODELS
from resnet_core.recipes.losses import LossConfig
from resnet_core.train import RunConfig, TrainConfig
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.optimizers import OptimizerConfig
from resnet_core.train.schedules import Schedule, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    """Architecture, a name that `resnet-core models` lists."""
    weights: str = ""
    """Weights to start from: a run's folder, a weights file, or published weights such as resnet50:IMAGENET1K_V2. Empty
    or none starts from random weights. If the number of classes differs, a new head is initialized."""
    key: str = ""
    """Key of the network's state dict in a file of several networks, as `resnet-core inspect` prints it."""
    prefix: str = ""
    """Prefix of the network's tensor names in a file of several networks, as `resnet-core inspect` prints it."""
    small_images: bool = False
    """Replace the stem by a 3x3 convolution of stride 1 without max-pool, for images of about 32 pixels. CIFAR's
    networks (cifar_resnet20 to cifar_resnet110) need no change for them."""
    freeze: str = "none"
    """Parts that keep the weights they start from: body (all but the head), stages:N (the stem and the first N stages),
    or none. BatchNorms in them keep their statistics too."""

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"model.name: unknown model {self.name!r}; {did_you_mean(self.name, MODELS)}")
        if self.small_images and MODELS[self.name].network is CifarResNet:
            raise ValueError(f"model.small_images: {self.name} is made for small images as it is; set it to False")
        stages = 3 if MODELS[self.name].network is CifarResNet else 4
        if frozen_children(self.freeze, [f"layer{number + 1}" for number in range(stages)]) and not self.weights:
            raise ValueError(
                f"model.freeze {self.freeze} would keep random weights; choose model.weights to start from, or set "
                "model.freeze to none"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of an experiment. Those under `run` cannot change its result."""

    model: ModelConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    """Seed of the initial weights, of the order of samples and of their augmentation."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and less than 2**63, got {self.seed}")
        growing = self.data.train_size_epochs
        if growing > self.train.epochs:
            raise ValueError(
                f"data.train_size_epochs {growing} is more than train.epochs {self.train.epochs}, so images would "
                "never reach data.train_size; set it to at most that, or to 0, which means all epochs"
            )
        self.lr_fn(steps_per_epoch=1)  # raises if the schedule does not fit; its rules count in epochs

    def lr_fn(self, steps_per_epoch: int) -> Schedule:
        """The learning rate of each step."""
        peak, epochs = self.optimizer.lr, self.train.epochs
        return Schedule(config=self.schedule, peak=peak, steps_per_epoch=steps_per_epoch, epochs=epochs)


def overlay(recipe: Recipe, path: str | Path) -> Recipe:
    """The recipe with the values of a TOML file in place of its own. Raises ValueError with the file and the key."""
    return from_mapping(Recipe, merged(asdict(recipe), read_toml(Path(path))), str(path))


def scaling_advice(named: Recipe, recipe: Recipe) -> str | None:
    """What linear scaling would change, if only the global batch was changed (Goyal et al. 2017, arXiv:1706.02677)."""
    factor = recipe.data.global_batch / named.data.global_batch
    lr = recipe.optimizer.lr
    if factor == 1 or lr != named.optimizer.lr or recipe.optimizer.name == "lamb":
        return None
    return (
        f"data.global_batch is {factor:g} times the recipe's {named.data.global_batch}, and optimizer.lr is still its "
        f"{lr:g}; linear scaling would be --optimizer.lr {lr * factor:g}"
    )
