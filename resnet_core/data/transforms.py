"""What happens to images before the network sees them: an augmentation in training, a fixed transform in evaluation.

Images come as uint8 (0..255) or float32 (0..1), `[C, H, W]` each: stacked in one tensor `[N, C, H, W]`, or as a list
where their sizes differ; in training also encoded, to be decoded once their crop is known. torchvision's transforms are
imported on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.transforms.v2 import RandomResizedCrop


class EncodedImage(Protocol):
    """An image whose pixels are decoded when it is known which are needed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def region(self, top: int, left: int, height: int, width: int, size: int) -> Tensor:
        """That part of the image, uint8 `[3, H, W]`: each side reduced as far as it stays at least `size` pixels."""
        ...


Images = Tensor | list[Any]  # of Tensor and, in training, EncodedImage

# Of the training images' R, G, B in 0..1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LARGEST_SIZE = 4096  # pixels
VALUES_AT_A_TIME = 2**17  # that are normalised: 0.5 MB
INTERPOLATIONS = ("bilinear", "bicubic")
CHANNEL_MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode


def normalize(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """`(images - mean) / std` of each channel, float32; uint8 images are first scaled to 0..1."""
    means, deviations = (torch.as_tensor(each, device=images.device)[:, None, None] for each in (mean, std))
    result = torch.empty_like(images, dtype=torch.promote_types(images.dtype, torch.float32))

    # On a CPU a few images at a time, which stay in its cache from step to step.
    at_a_time = len(images)
    if images.dim() == 4 and images.device.type == "cpu":
        at_a_time = max(1, VALUES_AT_A_TIME // max(1, images[:1].numel()))
    for part, normalized in zip(images.split(at_a_time), result.split(at_a_time), strict=True):
        if part.dtype == torch.uint8:
            # Divided, not multiplied by 1/255: bit for bit what torchvision's published weights saw.
            torch.div(part, 255, out=normalized).sub_(means)
        else:
            torch.sub(part, means, out=normalized)
        normalized.div_(deviations)
    return result


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """An image of any size -> `[channels, crop_size, crop_size]` float32, as in the evaluation of published weights.

    The shorter side becomes `resize_size` pixels (antialiased), the middle `crop_size` x `crop_size` are kept, and
    values in 0..1 are normalised with `mean` and `std`: 3 of each for RGB, 1 for grey.
    """

    resize_size: int
    crop_size: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    interpolation: str = "bilinear"
    """Or "bicubic", as timm and transformers resize."""
    bits: int = 0
    """How many bits the values of 16-bit files fill, for who reads the image; 0: what each file states."""

    def __post_init__(self) -> None:
        if not 1 <= self.resize_size <= LARGEST_SIZE:
            raise ValueError(f"resize_size must be in 1..{LARGEST_SIZE} pixels, got {self.resize_size}")
        if not 1 <= self.crop_size <= self.resize_size:
            raise ValueError(f"crop_size must be in 1..{self.resize_size} pixels (resize_size), got {self.crop_size}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0, got {self.std}")
        if len(self.mean) != len(self.std) or len(self.mean) not in CHANNEL_MODES:
            raise ValueError(f"mean and std need 1 value (grey) or 3 (RGB), got {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be {' or '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, image: Image) -> Tensor:
        return normalize(self._cropped(image), self.mean, self.std)

    def _cropped(self, image: Image) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as V

        mode, interpolation = CHANNEL_MODES[len(self.mean)], InterpolationMode(self.interpolation)
        resized = V.resize(image.convert(mode), [self.resize_size], interpolation, antialias=True)
        return V.pil_to_tensor(V.center_crop(resized, [self.crop_size]))

    def of_images(self, images: Images) -> Tensor:
        """The same for a batch, `[N, C, crop_size, crop_size]`; images that have this size are only normalised."""
        return normalize(self.cropped_images(images), self.mean, self.std)

    def cropped_images(self, images: Images) -> Tensor:
        """The same before it is normalised."""
        size = self.crop_size
        if isinstance(images, Tensor) and images.shape[1:] == (len(self.mean), size, size) and size == self.resize_size:
            return images
        from torchvision.transforms.v2 import functional as V

        return torch.stack([self._cropped(V.to_pil_image(image)) for image in images])


@dataclass(frozen=True)
class ViewSeeds:
    """Where the random numbers of a batch come from: the epoch, and a seed for each image."""

    epoch: int
    seeds: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes each image of a batch at random -> `[N, C, size, size]` float32, normalised unless `normalized` is False.

    What happens to an image depends only on its own seed and the epoch's size, so a batch may be split anywhere.
    Images are shifted at `size` pixels and then resized to the epoch's size, so that a shift is the same share of an
    image in every epoch. `size_of_epoch` may be `growing_size`. `DataConfig` has the other settings under the same
    names, and explains them.
    """

    mean: Sequence[float]
    std: Sequence[float]
    size: int
    size_of_epoch: Callable[[int], int] | None = None
    """None: always `size`."""
    random_resized_crop: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    trivial_augment: bool = False
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9
    random_erasing: float = 0.0
    normalized: bool = True
    """False keeps the type and the range of values that the images have, for `normalize` on the device."""

    def __call__(self, images: Images, views: ViewSeeds) -> Tensor:
        size = self.size_of_epoch(views.epoch) if self.size_of_epoch else self.size
        # Each step draws from seeds of its own.
        crop, move, recolour, erase = ([seed + step for seed in views.seeds] for step in (1, 0, 2, 3))

        # In the order of torchvision's reference recipes.
        batch = self._cropped(images, size, crop) if self.random_resized_crop else resized(images, self.size)
        if self.crop_padding or self.flip:
            batch = crop_and_flip(batch, move, padding=self.crop_padding, flip=self.flip)
        batch = resized(batch, size)
        if self.trivial_augment or self.rand_augment_ops:
            batch = each(self._policy(), batch, recolour)

        if self.normalized:
            batch = normalize(batch, self.mean, self.std)
        if self.random_erasing:
            from torchvision.transforms import v2

            batch = each(v2.RandomErasing(p=self.random_erasing), batch, erase)
        return batch

    def _cropped(self, images: Images, size: int, seeds: Sequence[int]) -> Tensor:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(size, scale=(self.random_resized_crop, 1.0))
        return each(partial(cropped, crop), images, seeds)

    def _policy(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        if self.trivial_augment:
            return v2.TrivialAugmentWide()
        return v2.RandAugment(self.rand_augment_ops, self.rand_augment_magnitude)


def resized(images: Images, size: int) -> Tensor:
    """The centre square of each image, `[N, C, size, size]`; a tensor of that size is returned unchanged."""
    if isinstance(images, Tensor) and images.shape[-2:] == (size, size):
        return images
    from torchvision.transforms import v2

    middle = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    if isinstance(images, Tensor):
        return middle(images)
    whole = (image if isinstance(image, Tensor) else image.region(0, 0, *image.shape, size) for image in images)
    return torch.stack([middle(image) for image in whole])


def cropped(crop: RandomResizedCrop, image: Tensor | EncodedImage) -> Tensor:
    """The random crop of an image. Of an encoded one it is drawn first, from the same random numbers."""
    if isinstance(image, Tensor):
        return crop(image)
    from torchvision.transforms.v2 import functional as V

    box = crop.make_params([torch.empty(1).expand(3, *image.shape)])  # which takes from its argument only the size
    region = image.region(box["top"], box["left"], box["height"], box["width"], crop.size[0])
    return V.resize(region, crop.size, antialias=True)


def each(transform: Callable[[Any], Tensor], images: Images, seeds: Sequence[int]) -> Tensor:
    """`transform` of every image, stacked. It draws from that image's seed; torch's random state is then restored."""
    # The generator, not torch.manual_seed: that would also seed the GPU's, which is not restored.
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(transform(image))
    return torch.stack(changed)


def crop_and_flip(images: Tensor, seeds: Sequence[int], *, padding: int, flip: bool) -> Tensor:
    """Shifts each image by up to `padding` pixels in each direction, and mirrors half of them (He et al. 2015, 4.2).

    The border is repeated outward. The paper pads CIFAR's normalised images with zeros, their mean; repeating the
    border is right for any range of values. All images are shifted at once, by looking up where each pixel comes from:
    about ten times as fast as one after the other.
    """
    number, channels, height, width = images.shape

    # Each image's shift and whether it is mirrored, from its own seed.
    draws = torch.zeros(number, 3, dtype=torch.int64)
    generator = torch.Generator()
    for seed, shift, mirror in zip(seeds, draws[:, :2].unbind(), draws[:, 2].unbind(), strict=True):
        generator.manual_seed(seed)
        shift.random_(2 * padding + 1, generator=generator)
        if flip:
            mirror.random_(2, generator=generator)
    tops, lefts, mirrored = draws.T[:, :, None]
    if not padding:
        pairs = zip(images, mirrored.flatten().tolist(), strict=True)
        return torch.stack([image.flip(-1) if mirror else image for image, mirror in pairs])

    # The row and the column that each pixel comes from.
    rows = (torch.arange(height) + tops - padding).clamp(0, height - 1)
    columns = (torch.arange(width) + lefts - padding).clamp(0, width - 1)
    columns = torch.where(mirrored.bool(), columns.flip(1), columns)
    sources = (rows[:, :, None] * width + columns[:, None, :]).view(number, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, sources).view_as(images)


def growing_size(epoch: int, *, start: int, end: int, epochs: int, step: int) -> int:
    """Pixels of a side in an epoch: from `start` in epoch 0 linearly to `end` in epoch `epochs - 1` and after.

    Sizes in between are rounded down to a multiple of `step`. This is progressive resizing (Howard, DAWNBench 2018; Tan
    & Le 2021, "EfficientNetV2", section 4.2): small images cost less.
    """
    if epoch >= epochs - 1:
        return end
    grown = start + (end - start) * epoch // (epochs - 1)
    return max(start, grown // step * step)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixes the images of a batch with each other, and returns each class's share of every image: `[N, K]`.

    MixUp (Zhang et al. 2018) blends two images, CutMix (Yun et al. 2019) pastes a rectangle of one into another. The
    share is drawn from Beta(alpha, alpha) for each batch. If both have an alpha, one of them is drawn for each batch.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        kinds = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        mixers = [kind(alpha=alpha, num_classes=self.num_classes) for kind, alpha in kinds if alpha]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            mixed, targets = v2.RandomChoice(mixers)(images, labels)
        return mixed, targets
