"""The data of a recipe: which, in what batches, and every change that training makes to an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

from resnet_core.data.datasets import DATASETS, Dataset, load_dataset
from resnet_core.data.loaders import EvalLoader, TrainLoader
from resnet_core.data.transforms import LARGEST_SIZE, Augmentation, Mixing, growing_size
from resnet_core.foundation.suggestions import did_you_mean

INFINITY = float("inf")

# Setting -> its smallest and largest value.
RANGES: dict[str, tuple[float, float]] = {
    "global_batch": (1, INFINITY),
    "eval_batch": (1, INFINITY),
    "random_resized_crop": (0, 1),
    "crop_padding": (0, LARGEST_SIZE),
    "rand_augment_ops": (0, 14),
    "rand_augment_magnitude": (0, 30),
    "random_erasing": (0, 1),
    "mixup": (0, 1000),
    "cutmix": (0, 1000),
    "repeated_augmentation": (1, INFINITY),
    "train_size": (0, LARGEST_SIZE),
    "train_size_start": (0, LARGEST_SIZE),
    "train_size_step": (1, LARGEST_SIZE),
    "train_size_epochs": (0, INFINITY),
    "eval_resize": (0, LARGEST_SIZE),
    "eval_size": (0, LARGEST_SIZE),
    "workers": (0, INFINITY),
}

# Settings of which one at most may be on.
EXCLUSIVE = (("random_resized_crop", "crop_padding"), ("trivial_augment", "rand_augment_ops"))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str
    """digits, or from a folder: fashion_mnist, cifar10, image_folder."""
    path: str = ""
    """The folder; digits need none."""
    global_batch: int
    """Samples of one step, over all processes."""
    eval_batch: int = 256
    """Samples that each process evaluates at once."""
    random_resized_crop: float = 0.0
    """Training sees a random part of each image, from this share of its area (0.08 is usual) to all; 0: off."""
    crop_padding: int = 0
    """Training images move by up to so many pixels each way."""
    flip: bool = False
    """Half of the training images are mirrored."""
    trivial_augment: bool = False
    """Each training image is changed by one of 14 operations, as strongly as chance has it (TrivialAugment Wide)."""
    rand_augment_ops: int = 0
    """So many of those operations one after the other (RandAugment); 0: off."""
    rand_augment_magnitude: int = 9
    """How strongly, 0..30."""
    random_erasing: float = 0.0
    """Share of the training images in which a rectangle becomes the mean."""
    mixup: float = 0.0
    """Alpha of MixUp, which blends the images of a batch; 0: off. With cutmix, one of the two is drawn."""
    cutmix: float = 0.0
    """Alpha of CutMix, which pastes rectangles between the images of a batch; 0: off."""
    repeated_augmentation: int = 1
    """Times that an image is in a batch, each time changed otherwise; the epoch is no longer, it shows fewer images."""
    train_size: int = 0
    """Height and width of training images in pixels; 0: that of evaluation."""
    train_size_start: int = 0
    """Height and width in the first epoch, from which they grow to train_size; 0: train_size from the start."""
    train_size_step: int = 32
    """Growing sizes are multiples of it: a ResNet's stages divide a side by 32, a CIFAR ResNet's by 4."""
    train_size_epochs: int = 0
    """Epochs that growing takes, the last of them at train_size; 0: all."""
    eval_resize: int = 0
    """Pixels of the shorter side before evaluation takes the middle; 0: the dataset's own."""
    eval_size: int = 0
    """Height and width of that middle; 0: the dataset's own."""
    workers: int = 0
    """Processes that prepare batches, for each training process; 0: itself."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise ValueError(f"data.name: unknown dataset {self.name!r}; {did_you_mean(self.name, DATASETS)}")
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            if not low <= value <= high:
                rule = f"at least {low}" if high == INFINITY else f"in {low}..{high}"
                raise ValueError(f"data.{key} must be {rule}, got {value}")
        for one, other in EXCLUSIVE:
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"data.{one} and data.{other} exclude each other; set one of them to 0")
        if self.global_batch % self.repeated_augmentation:
            raise ValueError(
                f"data.global_batch {self.global_batch} cannot hold each image {self.repeated_augmentation} times; "
                f"choose one that data.repeated_augmentation divides"
            )
        if bool(self.eval_resize) != bool(self.eval_size) or self.eval_resize < self.eval_size:
            raise ValueError(
                f"data.eval_resize and data.eval_size go together, the first at least the second; "
                f"got {self.eval_resize} and {self.eval_size}"
            )
        if self.train_size_start and not self.train_size:
            raise ValueError("data.train_size_start needs data.train_size, the size to which images grow; set both")
        if self.train_size_start > self.train_size:
            raise ValueError(
                f"data.train_size_start must be at most data.train_size, "
                f"got {self.train_size_start} and {self.train_size}"
            )


def dataset_of(config: DataConfig) -> Dataset:
    """The dataset, prepared for evaluation as the configuration says. Raises as `load_dataset`."""
    dataset = loaded(config.name, config.path)
    if not config.eval_size:
        return dataset
    transform = replace(dataset.transform, resize_size=config.eval_resize, crop_size=config.eval_size)
    return replace(dataset, transform=transform)


@lru_cache(maxsize=1)  # reading takes seconds, and a run asks for its dataset more than once
def loaded(name: str, path: str) -> Dataset:
    return load_dataset(name, path)


def augmentation_of(config: DataConfig, dataset: Dataset, epochs: int) -> Augmentation:
    """What `epochs` epochs of training do to the images."""
    end = config.train_size or dataset.transform.crop_size
    return Augmentation(
        mean=dataset.transform.mean,
        std=dataset.transform.std,
        size=end,
        size_of_epoch=partial(
            growing_size,
            start=config.train_size_start or end,
            end=end,
            epochs=config.train_size_epochs or epochs,
            step=config.train_size_step,
        ),
        random_resized_crop=config.random_resized_crop,
        crop_padding=config.crop_padding,
        flip=config.flip,
        trivial_augment=config.trivial_augment,
        rand_augment_ops=config.rand_augment_ops,
        rand_augment_magnitude=config.rand_augment_magnitude,
        random_erasing=config.random_erasing,
    )


def loaders_of(
    config: DataConfig,
    dataset: Dataset,
    *,
    epochs: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> tuple[TrainLoader, EvalLoader]:
    """This rank's batches to train and to evaluate on. Raises ValueError when `steps_per_epoch` does."""
    mixing = Mixing(num_classes=len(dataset.class_names), mixup=config.mixup, cutmix=config.cutmix)
    train_loader = TrainLoader(
        dataset.train,
        augment=augmentation_of(config, dataset, epochs),
        mix=mixing if config.mixup or config.cutmix else None,
        repeats=config.repeated_augmentation,
        global_batch=config.global_batch,
        seed=seed,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        pin_memory=pin_memory,
    )
    eval_loader = EvalLoader(
        dataset.test,
        batch=config.eval_batch,
        prepare=dataset.transform.of_images,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        pin_memory=pin_memory,
    )
    return train_loader, eval_loader
