"""The recipes by name, and where each of them comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resnet_core.data import DataConfig
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.recipes.losses import LossConfig
from resnet_core.recipes.recipe import ModelConfig, Recipe
from resnet_core.train import RunConfig, TrainConfig
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.optimizers import OptimizerConfig
from resnet_core.train.schedules import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a recipe comes from, what its source published, and, which is another thing, what was reached here."""

    name: str
    """Whose recipe it is."""
    published: str | None = None
    """Top-1 that the source published."""
    reached: str | None = None
    """Top-1 of the runs that docs/results.md lists."""
    command: str | None = None
    """The command of those runs."""

    def __str__(self) -> str:
        reached = f"{self.reached}: {self.command}" if self.reached else "not run here"
        return f"source          {self.name}\npublished       {self.published or 'none'}\nreached here    {reached}"


NO_SOURCE = "this project"

# Recipe -> its source, in the order of the recipes below.
SOURCES: dict[str, Source] = {
    "digits": Source(name=NO_SOURCE, reached="99.7%", command="resnet-core train digits"),
    **{
        f"cifar10_resnet{depth}": Source(
            name="He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6",
            published=f"{accuracy}% on CIFAR-10's original files",
        )
        for depth, accuracy in {20: 91.25, 32: 92.49, 44: 92.83, 56: 93.03, 110: 93.57}.items()
    },
    "cifar10_fast": Source(
        name=f"{NO_SOURCE}, with one cycle (Smith & Topin 2018)",
        reached="84.6% on CIFAR-10 saved as JPEG files",
        command="resnet-core train cifar10_fast",
    ),
    "fashion_mnist": Source(
        name=f"{NO_SOURCE}, with one cycle (Smith & Topin 2018)",
        reached="93.5%",
        command="resnet-core train fashion_mnist",
    ),
    "imagenet_card": Source(
        name="the model card's hyperparameters, with the decoupled decay that it was trained with",
        published="76.5% (ResNet-50)",
    ),
    "imagenet_card_literal": Source(
        name="the same hyperparameters with torch's coupled decay, which is 16.4 times stronger",
    ),
    "imagenet_nvidia90": Source(
        name="NVIDIA DeepLearningExamples, ResNet-50 v1.5, 90 epochs",
        published="77.12% (ResNet-50)",
    ),
    "imagenet_torchvision_v1": Source(
        name="torchvision's references for IMAGENET1K_V1",
        published="76.13% (ResNet-50)",
    ),
    "imagenet_torchvision_v2": Source(
        name="torchvision's references for IMAGENET1K_V2",
        published="80.86% (ResNet-50)",
    ),
    "imagenet_a3": Source(
        name="Wightman et al. 2021 (arXiv:2110.00476), procedure A3",
        published="78.1% (ResNet-50)",
    ),
    "finetune": Source(name=f"{NO_SOURCE}: published ImageNet weights, a new head, your own images"),
}


def cifar10(depth: int) -> Recipe:
    """64,000 steps; the learning rate is divided by 10 at steps 32,000 and 48,000. An epoch has 390 steps."""
    # The paper warms the deepest one up.
    warmup = {"warmup": "constant", "warmup_epochs": 1.0, "warmup_start_factor": 0.1} if depth == 110 else {}
    return Recipe(
        model=ModelConfig(name=f"cifar_resnet{depth}"),
        data=DataConfig(name="cifar10", global_batch=128, crop_padding=4, flip=True, workers=1),
        optimizer=OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="milestones", milestones=(82.0, 123.0), **warmup),  # type: ignore[arg-type]
        train=TrainConfig(epochs=164),
    )


def one_cycle(name: str, *, epochs: int, **data: Any) -> Recipe:
    """The learning rate climbs for a fifth of the epochs, then falls to 0; images start at half their size."""
    return Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name=name, global_batch=128, train_size_start=16, **data),
        optimizer=OptimizerConfig(lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True),
        schedule=ScheduleConfig(name="one_cycle", warmup_epochs=epochs / 5),
        train=TrainConfig(epochs=epochs, channels_last=True),
        run=RunConfig(log_every_steps=50),
    )


def imagenet(optimizer: OptimizerConfig, schedule: ScheduleConfig, *, epochs: int, **options: Any) -> Recipe:
    """ResNet-50 on a folder of ImageNet: random crops and flips; evaluation resizes to 256 and crops 224 pixels."""
    data = {"eval_resize": 256, "eval_size": 224, **options.pop("data")}
    return Recipe(
        model=ModelConfig(name="resnet50"),
        data=DataConfig(name="image_folder", random_resized_crop=0.08, flip=True, workers=8, **data),
        optimizer=optimizer,
        schedule=schedule,
        train=TrainConfig(epochs=epochs, precision="bf16", channels_last=True),
        run=RunConfig(log_every_steps=50),
        **options,
    )


# The model card's hyperparameters.
CARD: dict[str, Any] = {"lr": 2.048, "momentum": 0.875, "weight_decay": 5e-4}
CARD_SCHEDULE = ScheduleConfig(warmup_epochs=8, t_max_epochs=82)


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="digits", global_batch=64, crop_padding=1),
        optimizer=OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
        schedule=ScheduleConfig(warmup_epochs=2.0),
        train=TrainConfig(epochs=30),
    ),
    **{f"cifar10_resnet{depth}": cifar10(depth) for depth in (20, 32, 44, 56, 110)},
    "cifar10_fast": one_cycle(
        "cifar10", epochs=12, crop_padding=4, flip=True, train_size=32, train_size_step=8, train_size_epochs=11
    ),
    "fashion_mnist": one_cycle(
        "fashion_mnist", epochs=10, crop_padding=2, train_size=28, train_size_step=4, train_size_epochs=8
    ),
    "imagenet_card": imagenet(
        OptimizerConfig(name="decoupled_sgd", **CARD), CARD_SCHEDULE, epochs=90, data={"global_batch": 2048}
    ),
    "imagenet_card_literal": imagenet(
        OptimizerConfig(name="sgd", **CARD), CARD_SCHEDULE, epochs=90, data={"global_batch": 2048}
    ),
    "imagenet_nvidia90": imagenet(
        OptimizerConfig(lr=2.048, momentum=0.875, weight_decay=1 / 32768, decay_norms=False),
        CARD_SCHEDULE,
        epochs=90,
        data={"global_batch": 2048},
        loss=LossConfig(label_smoothing=0.1),
    ),
    "imagenet_torchvision_v1": imagenet(
        OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        ScheduleConfig(name="milestones", milestones=(30.0, 60.0)),
        epochs=90,
        data={"global_batch": 256},
    ),
    "imagenet_torchvision_v2": imagenet(
        OptimizerConfig(lr=0.5, momentum=0.9, weight_decay=2e-5, decay_norms=False),
        ScheduleConfig(warmup_epochs=5, warmup_start_factor=0.01),
        epochs=600,
        data={
            "global_batch": 1024,
            "eval_resize": 232,
            "train_size": 176,
            "trivial_augment": True,
            "random_erasing": 0.1,
            "mixup": 0.2,
            "cutmix": 1.0,
            "repeated_augmentation": 4,
        },
        loss=LossConfig(label_smoothing=0.1),
        # Its decay of 0.99998 is adjusted to 1 - 2e-5 * global batch * steps between updates / epochs.
        averaging=AveragingConfig(ema_decay=1 - 2e-5 * 1024 * 32 / 600, ema_every_steps=32),
    ),
    "imagenet_a3": imagenet(
        OptimizerConfig(name="lamb", lr=0.008, weight_decay=0.02, decay_norms=False, decay_biases=False),
        ScheduleConfig(warmup_epochs=5, final_lr=1e-6),
        epochs=100,
        data={
            "global_batch": 2048,
            "eval_resize": 236,
            "train_size": 160,
            "rand_augment_ops": 2,
            "rand_augment_magnitude": 18,  # the source's 6 of 10, which it also varies, skipping half of the operations
            "mixup": 0.1,
            "cutmix": 1.0,
        },
        loss=LossConfig(name="binary_cross_entropy", target_threshold=0.2),
    ),
    "finetune": Recipe(
        model=ModelConfig(name="resnet50", weights="resnet50:IMAGENET1K_V2"),
        data=DataConfig(name="image_folder", global_batch=64, random_resized_crop=0.25, flip=True, workers=2),
        optimizer=OptimizerConfig(lr=0.01, weight_decay=1e-4, head_lr_factor=10.0),
        schedule=ScheduleConfig(warmup_epochs=1.0),
        train=TrainConfig(epochs=20, channels_last=True),
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises ValueError with the nearest name for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]
