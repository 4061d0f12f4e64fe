"""Named experiments: the one place where models, data and training meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.backbone import Backbone
from resnet_core.data import DataConfig, Dataset, EvalLoader, TrainLoader, dataset_of, identity, loaders_of
from resnet_core.models import MODELS, get_model
from resnet_core.pretrained import check_config, info_of, load_model
from resnet_core.settings import from_mapping, merged, read_toml, to_toml
from resnet_core.suggestions import did_you_mean
from resnet_core.train import RunConfig, TrainConfig, Trainer, World
from resnet_core.train.averaging import AveragingConfig, WeightAverage
from resnet_core.train.metrics import classification_sums
from resnet_core.train.optimizers import OptimizerConfig, build_optimizer
from resnet_core.train.report import Report
from resnet_core.train.schedules import Schedule, ScheduleConfig
from resnet_core.train.trainer import never


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
class LossConfig:
    """What training makes small. Targets are class numbers, or probabilities where images are mixed."""

    name: str = "cross_entropy"
    """cross_entropy, or binary_cross_entropy: each class a yes or no of its own."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike (Szegedy et al. 2016, arXiv:1512.00567)."""
    target_threshold: float = 0.0
    """binary_cross_entropy where images are mixed: a class with a larger share of the image is wholly there, one with
    less is not; 0: the shares are the targets."""

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"loss.name: unknown loss {self.name!r}; {did_you_mean(self.name, LOSSES)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.target_threshold < 1:
            raise ValueError(f"loss.target_threshold must be in [0, 1), got {self.target_threshold}")
        if self.target_threshold and self.name != "binary_cross_entropy":
            raise ValueError(f"loss.target_threshold is binary_cross_entropy's; leave it 0 for {self.name}")

    def of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`([N, classes], [N] or [N, classes])` -> the mean over the batch."""
        if self.target_threshold and targets.dim() == 2:
            targets = (targets > self.target_threshold).to(targets.dtype)
        return LOSSES[self.name](logits, targets, label_smoothing=self.label_smoothing)


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Summed over the classes, mean over the batch (Beyer et al. 2020, arXiv:2006.07159, section 5)."""
    classes = logits.shape[1]
    wanted = targets if targets.dim() == 2 else F.one_hot(targets, classes)
    wanted = wanted.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(logits)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}


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


# Names of recipes below; what each reproduces, and the top-1 that its source publishes.
SOURCES: dict[str, str] = {
    "digits": "ResNet-20 on the digits that ship with the package; at least 99.0% of 360 test images",
    **{
        f"cifar10_resnet{depth}": f"He et al. 2015, section 4.2 and table 6: {accuracy}% on CIFAR-10's original files"
        for depth, accuracy in {20: 91.25, 32: 92.49, 44: 92.83, 56: 93.03, 110: 93.57}.items()
    },
    "cifar10_fast": "ResNet-20, one cycle (Smith & Topin 2018), half an hour: 84.6% on CIFAR-10 as JPEG files",
    "fashion_mnist": "ResNet-20 on Fashion-MNIST, one cycle: 93.5%",
    "imagenet_card": "the model card's hyperparameters with decoupled decay, as they were run: ResNet-50 76.5%",
    "imagenet_card_literal": "the same numbers as torch reads them, coupled: decays 16.4 times harder; none published",
    "imagenet_nvidia90": "NVIDIA DeepLearningExamples, ResNet-50 v1.5, 90 epochs: 77.12%",
    "imagenet_torchvision_v1": "torchvision's references for IMAGENET1K_V1: ResNet-50 76.13%",
    "imagenet_torchvision_v2": "torchvision's references for IMAGENET1K_V2: ResNet-50 80.86%",
    "imagenet_a3": "Wightman et al. 2021 (arXiv:2110.00476), procedure A3: ResNet-50 78.1%",
    "finetune": "published ImageNet weights, a new head that learns ten times as fast, a folder of your own images",
}


def cifar10(depth: int) -> Recipe:
    """64,000 steps, a tenth of the learning rate from 32,000 and from 48,000 on; 390 steps are an epoch."""
    warmup = {"warmup": "constant", "warmup_epochs": 1.0, "warmup_start_factor": 0.1} if depth == 110 else {}
    return Recipe(
        model=ModelConfig(name=f"cifar_resnet{depth}"),
        data=DataConfig(name="cifar10", global_batch=128, crop_padding=4, flip=True, workers=1),
        optimizer=OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(name="milestones", milestones=(82.0, 123.0), **warmup),  # type: ignore[arg-type]
        train=TrainConfig(epochs=164),
    )


def one_cycle(name: str, *, epochs: int, **data: Any) -> Recipe:
    """Up for a fifth of the epochs and down to 0, on images of half the size at first."""
    return Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name=name, global_batch=128, train_size_start=16, **data),
        optimizer=OptimizerConfig(lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True),
        schedule=ScheduleConfig(name="one_cycle", warmup_epochs=epochs / 5),
        train=TrainConfig(epochs=epochs, channels_last=True),
        run=RunConfig(log_every_steps=50),
    )


def imagenet(optimizer: OptimizerConfig, schedule: ScheduleConfig, *, epochs: int, **options: Any) -> Recipe:
    """ResNet-50 on a folder of ImageNet: random crops and flips, evaluated at 256 and 224 pixels."""
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


CARD: dict[str, Any] = {"lr": 2.048, "momentum": 0.875, "weight_decay": 5e-4}


CARD_SCHEDULE = ScheduleConfig(warmup_epochs=8, t_max_epochs=82)


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(name="digits", global_batch=64, crop_padding=2),
        optimizer=OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
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
        # Its 0.99998 is for one image at a time: 1 - 2e-5 * global batch * steps between updates / epochs.
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
            "rand_augment_magnitude": 18,  # the source's 6 of 10; it varies it, and leaves half of the changes out
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
    """The recipe of that name. Raises ValueError for an unknown one, with the nearest."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]


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


def make_loaders(recipe: Recipe, world: World) -> tuple[Dataset, TrainLoader, EvalLoader]:
    """A recipe's data and this rank's batches of it. Raises ValueError for data that is not as the recipe says."""
    dataset = dataset_of(recipe.data)
    train_loader, eval_loader = loaders_of(
        recipe.data,
        dataset,
        epochs=recipe.train.epochs,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )
    return dataset, train_loader, eval_loader


def make_trainer(
    recipe: Recipe,
    world: World | None = None,
    *,
    build: Callable[..., nn.Module] | None = None,
    report: Report | None = None,
    folder: str | Path | None = None,
    stop_asked: Callable[[], bool] = never,
) -> Trainer:
    """The trainer of a recipe, ready for `fit()` or, in a loop of your own, `steps()`.

    `build(num_classes=.., in_channels=..)` makes a network of your own, whose head is `fc` where it has one, in place
    of the recipe's. Raises as `make_loaders`.
    """
    world = world or World()
    dataset, train_loader, eval_loader = make_loaders(recipe, world)
    torch.manual_seed(recipe.seed)
    model = (build or partial(make_model, recipe.model))(**head_and_stem(dataset))
    return Trainer(
        recipe.train,
        model,
        build_optimizer(model, recipe.optimizer, head=dict(model.named_children()).get("fc")),
        world=world,
        loss_fn=recipe.loss.of,
        lr_fn=recipe.lr_fn(len(train_loader)),
        train_loader=train_loader,
        eval_loader=eval_loader,
        score_fn=classification_sums,
        max_gradient_norm=recipe.optimizer.max_grad_norm,
        average=WeightAverage(recipe.averaging) if recipe.averaging.ema_decay else None,
        run=recipe.run,
        report=report,
        folder=Path(folder) / "checkpoints" if folder else None,
        about={"recipe": to_toml(recipe), "data": identity(dataset), "torch": torch.__version__} if folder else None,
        stop_asked=stop_asked,
        seed=recipe.seed,
    )


def make_model(config: ModelConfig, *, num_classes: int, in_channels: int) -> nn.Module:
    """The network that a run starts from. Raises as `builder_arguments`, and where the weights cannot be had."""
    arguments = builder_arguments(config, num_classes=num_classes, in_channels=in_channels)
    if not config.weights:
        return get_model(config.name, **arguments)
    model, _ = load_model(config.weights, progress=False)
    outputs, features = model.get_parameter("fc.weight").shape
    if outputs != num_classes:
        if isinstance(model, Backbone):
            model.reset_classifier(num_classes)
        else:
            model.register_module("fc", nn.Linear(features, num_classes))
    return model.train()


def builder_arguments(config: ModelConfig, *, num_classes: int, in_channels: int) -> dict[str, Any]:
    """With what `get_model` builds a run's network. Of the weights that it starts from only the header is read.

    Raises ValueError where these are another model's or for other images.
    """
    fitting = {"num_classes": num_classes, "in_channels": in_channels}
    if not config.weights:
        return fitting
    info = info_of(config.weights)
    if info.model != config.name:
        raise ValueError(f"model.weights {config.weights} are a {info.model}'s, and model.name is {config.name}")
    if info.config.get("in_channels", 3) != in_channels:
        raise ValueError(f"model.weights {config.weights} are not for images of {in_channels} channels")
    return {**check_config(info.config, config.weights), **fitting}


def head_and_stem(dataset: Dataset) -> dict[str, int]:
    """A builder's arguments that fit a network to a dataset."""
    return {"num_classes": len(dataset.class_names), "in_channels": dataset.in_channels}
