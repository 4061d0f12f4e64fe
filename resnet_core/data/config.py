"""The data of a recipe: which dataset, its batches, and everything that training does to an image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial

from resnet_core.data.datasets import DATASETS, IMAGE_FOLDER, load_dataset
from resnet_core.data.decoders import DECODERS, PILLOW
from resnet_core.data.folders import FolderOptions
from resnet_core.data.images import MOST_BITS
from resnet_core.data.loaders import EvalLoader, TrainLoader
from resnet_core.data.splits import Dataset
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
    "val_share": (0, 0.9),
    "bits": (0, MOST_BITS),
}

# Settings that only an image folder has.
FOR_IMAGE_FOLDERS = ("val_share", "val_seed", "exclude", "bits")

# Settings of which one at most may be on.
EXCLUSIVE = (("random_resized_crop", "crop_padding"), ("trivial_augment", "rand_augment_ops"))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: str
    """The dataset: digits, or one in a folder (--data.path): fashion_mnist, cifar10, image_folder."""
    path: str = ""
    """Folder of the dataset: for image_folder train/CLASS/IMAGE and val/CLASS/IMAGE, or a CSV file with the columns
    path and label, and split if you like. Only digits need none."""
    val_share: float = 0.0
    """Hold back this share of each class of an image folder's training images for validation, where it has no
    validation part: 0.2 is a fifth, 0.9 the most."""
    val_seed: int = 0
    """Seed with which data.val_share draws. The draw depends on the images' names only, not on the recipe's seed."""
    exclude: str = ""
    """A file that lists images of an image folder to leave out, one a line; `resnet-core data check` can write it."""
    bits: int = 0
    """How many bits the values of an image folder's 16-bit files fill, 1 to 16; 0 takes what each file states."""
    decoder: str = PILLOW
    """What decodes an image folder's training images: pillow, or simplejpeg, which is faster (see docs/data.md).
    Evaluation always uses pillow."""
    global_batch: int
    """Samples in one step, summed over all processes."""
    eval_batch: int = 256
    """Samples that each process evaluates at a time."""
    random_resized_crop: float = 0.0
    """RandomResizedCrop: the smallest share of an image's area, up to 1, that a crop covers. 0 turns it off; 0.08 is
    usual."""
    crop_padding: int = 0
    """Shift each training image by up to this many pixels in each direction; 0 shifts none."""
    flip: bool = False
    """Mirror half of the training images."""
    trivial_augment: bool = False
    """Apply TrivialAugment Wide: one of 14 operations at a random strength."""
    rand_augment_ops: int = 0
    """Apply RandAugment: this many of TrivialAugment's 14 operations, one after the other; 0 turns it off."""
    rand_augment_magnitude: int = 9
    """Strength of RandAugment's operations, 0 to 30."""
    random_erasing: float = 0.0
    """Share of the training images, 0 to 1, in which a rectangle is replaced by the mean colour."""
    mixup: float = 0.0
    """Alpha of MixUp, which blends pairs of images; 0 turns it off. With data.cutmix, each batch uses one of
    them."""
    cutmix: float = 0.0
    """Alpha of CutMix, which pastes a rectangle of one image into another; 0 turns it off."""
    repeated_augmentation: int = 1
    """How many differently augmented copies of each image a batch holds. An epoch keeps its length, so it shows fewer
    distinct images."""
    train_size: int = 0
    """Height and width of training images in pixels; 0 uses the evaluation size."""
    train_size_start: int = 0
    """Height and width in the first epoch, from which images grow to data.train_size; 0 trains at that size
    throughout."""
    train_size_step: int = 32
    """Growing sizes are multiples of this. A ResNet divides a side by 32, a CIFAR ResNet by 4."""
    train_size_epochs: int = 0
    """Number of epochs in which images grow, the last of them at data.train_size; 0 takes all epochs."""
    eval_resize: int = 0
    """Evaluation resizes the shorter side to this many pixels and then crops the centre; 0 takes the dataset's own."""
    eval_size: int = 0
    """Height and width of that centre crop; 0 takes the dataset's own."""
    workers: int = 0
    """Loader processes per training process; 0 loads in the training process itself."""

    def __post_init__(self) -> None:
        # Each setting by itself.
        if self.name not in DATASETS:
            raise ValueError(f"data.name: unknown dataset {self.name!r}; {did_you_mean(self.name, DATASETS)}")
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            if not low <= value <= high:
                rule = f"at least {low}" if high == INFINITY else f"in {low}..{high}"
                raise ValueError(f"data.{key} must be {rule}, got {value}")

        for key in FOR_IMAGE_FOLDERS:
            if getattr(self, key) and self.name != IMAGE_FOLDER:
                raise ValueError(f"data.{key} is for images in folders, and data.name is {self.name}; leave it out")

        if self.decoder not in DECODERS:
            raise ValueError(f"data.decoder: unknown decoder {self.decoder!r}; {did_you_mean(self.decoder, DECODERS)}")
        if self.decoder != PILLOW and self.name != IMAGE_FOLDER:
            raise ValueError(f"data.decoder is for images in folders, and data.name is {self.name}; leave it out")

        # Settings that depend on each other.
        for one, other in EXCLUSIVE:
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"data.{one} and data.{other} exclude each other; set one of them to 0")
        if self.global_batch % self.repeated_augmentation:
            raise ValueError(
                f"data.global_batch {self.global_batch} cannot hold each image {self.repeated_augmentation} times; "
                f"choose one that data.repeated_augmentation divides"
            )

        # Sizes.
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
        if self.train_size_epochs == 1 or (self.train_size_epochs and not self.train_size_start):
            raise ValueError(
                f"data.train_size_epochs {self.train_size_epochs} changes nothing: images grow from "
                "data.train_size_start, which must be set, over at least 2 epochs; set it to 0"
            )

    @property
    def normalizes_last(self) -> bool:
        """Whether nothing happens to a training image after it is normalised."""
        return not (self.random_erasing or self.mixup or self.cutmix)

    @property
    def folder_options(self) -> FolderOptions:
        """How an image folder is read."""
        return FolderOptions(**{key: getattr(self, key) for key in FOR_IMAGE_FOLDERS})


def dataset_of(config: DataConfig) -> Dataset:
    """The dataset, read anew, and prepared for evaluation as configured. Raises what `load_dataset` raises."""
    dataset = load_dataset(config.name, config.path, config.folder_options)
    if not config.eval_size:
        return dataset
    transform = replace(dataset.transform, resize_size=config.eval_resize, crop_size=config.eval_size)
    return replace(dataset, transform=transform)


def augmentation_of(config: DataConfig, dataset: Dataset, epochs: int) -> Augmentation:
    """What `epochs` epochs of training do to the images."""
    shared = {each.name for each in fields(Augmentation)} & {each.name for each in fields(DataConfig)}
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
        **{name: getattr(config, name) for name in shared},
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
    normalized: bool = True,
) -> tuple[TrainLoader, EvalLoader]:
    """This rank's batches to train and to evaluate on.

    With `normalized=False`, images keep their type, for `normalize` on the device: uint8 is a quarter of the bytes.
    Raises ValueError when `steps_per_epoch` does, and for a decoder that is not installed.
    """
    if not (normalized or config.normalizes_last):
        raise ValueError("random erasing, MixUp and CutMix need normalised images; leave out normalized=False")
    mixing = Mixing(num_classes=len(dataset.class_names), mixup=config.mixup, cutmix=config.cutmix)
    train_loader = TrainLoader(
        DECODERS[config.decoder](dataset.train),
        augment=replace(augmentation_of(config, dataset, epochs), normalized=normalized),
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
        transform=dataset.transform.of_images if normalized else dataset.transform.cropped_images,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        pin_memory=pin_memory,
    )
    return train_loader, eval_loader
