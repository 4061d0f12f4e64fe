"""Folders that timm or transformers saved: which network their weights are of, and how its images are prepared.

Anyone may have written these files, so each value is checked where it is read. Keys that are not read are ignored.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_core.data.transforms import CHANNEL_MODES, IMAGENET_MEAN, IMAGENET_STD, LARGEST_SIZE, ImageTransform
from resnet_core.foundation.errors import shortened
from resnet_core.models.resnet import TABLE_1, WIDER, BasicBlock, Bottleneck
from resnet_core.weights import rules
from resnet_core.weights.header import WeightsError
from resnet_core.weights.info import WeightsInfo
from resnet_core.weights.rules import Rule, Values, read_json, shown

NETWORKS = (*TABLE_1, *WIDER)
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FolderDescription:
    """What a folder says of the weights in it."""

    path: Path
    """Its config.json."""
    values: Mapping[str, Any]
    """What is in that file."""
    library: str
    """timm or transformers."""
    architecture: str
    """As the library names it."""
    model: str | None = None
    """Our name; None for a network that is not one of ours."""
    refusal: str = ""
    """Why the network is not one of ours, and what loads it."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of our builder that are not the defaults."""
    transform: ImageTransform | None = None
    caveat: str = ""
    """Why `transform` is None where the folder describes a preparation of images."""
    class_names: tuple[str, ...] | None = None

    def info(self) -> WeightsInfo:
        """What the weights' own file would say. Raises WeightsError for a network that is not one of ours."""
        if self.model is None:
            raise WeightsError(self.refusal)
        return WeightsInfo(
            model=self.model,
            config=self.config,
            transform=self.transform,
            class_names=self.class_names,
            origin=f"{self.architecture} of {self.library}, as its {self.path.name} describes it",
        )


def read_description(folder: Path) -> FolderDescription | None:
    """What timm's or transformers' files in a folder say; None where there are none.

    Raises WeightsError that names the file, the key and the value for one that cannot be true.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = Values(path, read_json(path))
    if "architecture" in config.values:
        return describe_timm(config)
    if "model_type" in config.values:
        return describe_transformers(config)
    return None


def description_of(path: Path) -> FolderDescription | None:
    """What a folder says of itself or of a weights file in it; None for a file under a name that no library writes."""
    if path.is_dir():
        return read_description(path)
    return read_description(path.parent) if path.name in WEIGHTS else None


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The weights files of a folder under the names that libraries write, the preferred one first."""
    return tuple(folder / name for name in WEIGHTS if (folder / name).is_file())


# timm: everything is in config.json.


def describe_timm(config: Values) -> FolderDescription:
    """What timm's config.json says. Raises WeightsError for a value that cannot be true."""
    # Files from before timm 0.8 are flat.
    trained = config.inside("pretrained_cfg") if "pretrained_cfg" in config.values else config
    arguments = config.inside("model_args")
    architecture = config.get("architecture", rules.WORD, "")
    classes = config.get("num_classes", rules.COUNT_OR_0, trained.get("num_classes", rules.COUNT_OR_0, None))

    # timm's own evaluation prefers the test size to the one that the network was trained at.
    shape = trained.get("test_input_size", rules.SHAPE, trained.get("input_size", rules.SHAPE, [3, 224, 224]))
    channels = arguments.get("in_chans", rules.COUNT, shape[0])
    transform, caveat = timm_transform(trained, channels, shape[1:])

    model, refusal = architecture.partition(".")[0], timm_refusal(config, arguments, architecture)
    return FolderDescription(
        path=config.path,
        values=config.values,
        library="timm",
        architecture=architecture,
        model=None if refusal else model,
        refusal=refusal,
        config=not_default(num_classes=classes, in_channels=channels, **dilation(arguments)),
        transform=transform,
        caveat=caveat,
        class_names=timm_names(config, trained, classes),
    )


def timm_refusal(config: Values, arguments: Values, architecture: str) -> str:
    """Why the network is not one of ours; empty if it is one."""
    path, model = config.path, architecture.partition(".")[0]
    pool = arguments.get("global_pool", rules.WORD, config.get("global_pool", rules.WORD, "avg"))
    changed = [key for key, value in arguments.values.items() if key not in TIMM_ARGUMENTS and value is not None]

    if model not in NETWORKS:
        fault = f"{path} has architecture {shown(architecture)}, {timm_other(model)}"
    elif pool not in ("avg", "fast", ""):
        fault = f"{path} has global_pool {shown(pool)}, which has {model}'s tensors and gives other logits"
    elif changed:
        fault = f"{path} has model_args {shortened(changed)}, which may make another network of {model}'s tensors"
    else:
        return ""
    return f"{fault}; timm loads it: timm.create_model({f'local-dir:{path.parent}'!r}, pretrained=True)"


def timm_other(model: str) -> str:
    """What sets a network of timm's apart that is not one of ours."""
    known = (words for part, words in TIMM_OTHERS.items() if re.search(part, model))
    return next(known, "which is not a network of resnet_core")


TIMM_ARGUMENTS = {
    "num_classes", "in_chans", "global_pool", "output_stride",  # read here
    "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last",  # of training only
}  # fmt: skip
TIMM_OTHERS = {
    r"^resnetv2": "whose blocks normalise before they convolve",
    r"blur": "which blurs before each stride: it has a plain ResNet's tensors and gives other logits",
    r"aa\d": "which averages before each stride: it has a plain ResNet's tensors and gives other logits",
    r"_gn$": "which has GroupNorm in place of BatchNorm",
    r"^(se|eca|gc|sk)|^resnetrs|^resnest": "whose blocks have attention",
    r"^resne[tx]t?\d+[cdst]": "which has another stem, and in part other shortcuts",
}  # a part of timm's name -> what sets that network apart


def timm_transform(trained: Values, channels: int, size: list[int]) -> tuple[ImageTransform | None, str]:
    """timm's preparation of an image in evaluation, or why ImageTransform cannot do it."""
    share = trained.get("test_crop_pct", rules.SHARE, trained.get("crop_pct", rules.SHARE, 0.875))
    mean, std = trained.get("mean", rules.NUMBERS, IMAGENET_MEAN), trained.get("std", rules.DEVIATIONS, IMAGENET_STD)
    mode = trained.get("crop_mode", rules.WORD, "center")
    interpolation = trained.get("interpolation", rules.WORD, "bicubic")
    resize_size = math.floor(size[0] / share)

    path, unfit = trained.path, ""
    if size[0] != size[1]:
        unfit = f"{path} has input_size {size}, which is not square"
    elif mode != "center":
        unfit = f"{path} has crop_mode {shown(mode)}, and resnet_core crops the centre"
    elif interpolation not in ("bilinear", "bicubic"):
        unfit = f"{path} has interpolation {shown(interpolation)}, and resnet_core resizes bilinear or bicubic"
    elif resize_size > LARGEST_SIZE:
        unfit = f"{path} has crop_pct {share}, which makes {size[0]} pixels {resize_size}, more than {LARGEST_SIZE}"
    return transform_or_caveat(path, unfit, channels, resize_size, size[0], mean, std, interpolation)


def timm_names(config: Values, trained: Values, classes: int | None) -> tuple[str, ...] | None:
    """The classes' names, or, for WordNet's numbers (n01440764), their descriptions."""
    owner = config if "label_names" in config.values else trained
    names = read_names(owner, "labels" if "labels" in owner.values else "label_names", classes)
    descriptions = config.get("label_descriptions", rules.LABELS, trained.get("label_descriptions", rules.LABELS, {}))
    if names and all(re.fullmatch(r"n\d{8}", name) and name in descriptions for name in names):
        return tuple(descriptions[name] for name in names)
    return names


def dilation(arguments: Values) -> dict[str, Any]:
    """timm's `output_stride` as our argument: the stages whose stride becomes a dilation."""
    flags = {32: None, 16: [False, False, True], 8: [False, True, True]}
    rule = Rule("8, 16 or 32", lambda value: type(value) is int and value in flags)
    return {"replace_stride_with_dilation": flags[arguments.get("output_stride", rule, 32)]}


# transformers: the network is in config.json, the preparation of images in preprocessor_config.json.


def describe_transformers(config: Values) -> FolderDescription:
    """What transformers' config.json and preprocessor_config.json say. Raises what `describe_timm` raises."""
    kind = config.get("model_type", rules.WORD, "")
    architecture = (config.get("architectures", rules.WORDS, None) or [kind])[0]
    channels = config.get("num_channels", rules.COUNT, 3)
    layer = config.get("layer_type", rules.WORD, "bottleneck")
    v1 = layer == "bottleneck" and config.get("downsample_in_bottleneck", rules.FLAG, False)

    names = read_names(config, "id2label", None)
    classes = len(names) if names else None
    if names == tuple(f"LABEL_{number}" for number in range(classes or 0)):
        names = None
    if architecture in ("ResNetModel", "ResNetBackbone"):  # networks without a head, whose labels are a default
        classes, names = None, None

    model, refusal = find_transformers_model(config, kind, layer)
    transform, caveat = transformers_transform(config.path.with_name("preprocessor_config.json"), channels)
    return FolderDescription(
        path=config.path,
        values=config.values,
        library="transformers",
        architecture=architecture,
        model=model,
        refusal=refusal,
        config=not_default(num_classes=classes, in_channels=channels, stride_in_1x1=v1),
        transform=transform,
        caveat=caveat,
        class_names=names,
    )


def find_transformers_model(config: Values, kind: str, layer: str) -> tuple[str | None, str]:
    """Our name of the network, or why it is not one of ours."""
    expected = {"model_type": "resnet", "hidden_act": "relu", "embedding_size": 64, "downsample_in_first_stage": False}
    given = {key: config.values.get(key, value) for key, value in expected.items()}
    odd = [f"{key} {shown(value)}" for key, value in given.items() if value != expected[key]]

    kinds: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
    block = kinds.get(layer)
    depths = config.get("depths", rules.COUNTS, [3, 4, 6, 3])
    sizes = config.get("hidden_sizes", rules.COUNTS, [256, 512, 1024, 2048])
    if block is not None and not odd and sizes == [width * block.expansion for width in (64, 128, 256, 512)]:
        for name, (its_block, its_depths) in TABLE_1.items():
            if its_block is block and [*its_depths] == depths:
                return name, ""

    odd = odd or [f"layer_type {shown(layer)}, depths {depths[:8]} and hidden_sizes {sizes[:8]}"]
    return None, (
        f"{config.path} has {', '.join(odd)}, which is not a network of resnet_core; transformers loads it: "
        f"transformers.AutoModel.from_pretrained({str(config.path.parent)!r})"
    )


def transformers_transform(path: Path, channels: int) -> tuple[ImageTransform | None, str]:
    """The preparation of an image that a preprocessor_config.json describes, or why ImageTransform cannot do it."""
    if not path.is_file():
        return None, ""
    values = Values(path, read_json(path))
    kind = values.get("image_processor_type", rules.WORD, values.get("feature_extractor_type", rules.WORD, "ConvNext"))
    crops = values.get("do_center_crop", rules.FLAG, False)

    # ConvNext's processor, which is ResNet's, resizes to size / crop_pct. Others resize to a shortest edge and name the
    # size of their crop. A number alone means a square to some of them.
    size = crop_size = edge(values, "size")
    if kind.startswith("ConvNext"):
        resize_size = int(size / values.get("crop_pct", rules.SHARE, 224 / 256)) if size < 384 and not crops else 0
    else:
        resize_size = size if isinstance(values.values.get("size"), dict) else 0
        crop_size = edge(values, "crop_size") if crops else 0

    off = [key for key in ("do_resize", "do_rescale") if not values.get(key, rules.FLAG, True)]
    resample, factor = values.get("resample", rules.COUNT_OR_0, 3), values.get("rescale_factor", rules.NUMBER, 1 / 255)
    unfit = ""
    if off:
        unfit = f"{path} has {' and '.join(off)} false, and resnet_core resizes images and divides them by 255"
    elif abs(factor * 255 - 1) > 1e-6:
        unfit = f"{path} has rescale_factor {factor}, and resnet_core divides by 255"
    elif resample not in RESAMPLE:
        unfit = f"{path} has resample {resample}, and resnet_core resizes bilinear (2) or bicubic (3)"
    elif not 1 <= crop_size <= resize_size <= LARGEST_SIZE:
        unfit = (
            f"{path} has image_processor_type {shown(kind)} with size {shown(values.values.get('size'))}, and "
            "resnet_core follows a shortest edge, below 384 for ConvNext's, and a crop of the centre"
        )

    mean, std = values.get("image_mean", rules.NUMBERS, [0.5]), values.get("image_std", rules.DEVIATIONS, [0.5])
    if not values.get("do_normalize", rules.FLAG, True):
        mean, std = [0.0], [1.0]
    return transform_or_caveat(path, unfit, channels, resize_size, crop_size, mean, std, RESAMPLE.get(resample, ""))


RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def edge(values: Values, key: str) -> int:
    """A size in pixels: a number, {"shortest_edge": n} or, for a crop, a square's {"height": n, "width": n}; else 0."""
    if not isinstance(values.values.get(key), dict):
        return int(values.get(key, rules.SIZE, 0))
    inner = values.inside(key)
    height, width = inner.get("height", rules.SIZE, 0), inner.get("width", rules.SIZE, 0)
    return int(inner.get("shortest_edge", rules.SIZE, height if height == width and key == "crop_size" else 0))


# What both share.


def transform_or_caveat(
    path: Path, unfit: str, channels: int, resize_size: int, crop_size: int,
    mean: list[float], std: list[float], interpolation: str,
) -> tuple[ImageTransform | None, str]:  # fmt: skip
    """The transform, or why there is none and what to do. `unfit` says why where it is known already."""
    # One mean may stand for all channels.
    mean, std = ([*values] * channels if len(values) == 1 else values for values in (mean, std))
    if not unfit and not len(mean) == len(std) == channels:
        unfit = f"{path} has {len(mean)} means and {len(std)} deviations for images of {channels} channels"
    elif not unfit and channels not in CHANNEL_MODES:
        unfit = f"{path} describes images of {channels} channels, and resnet_core prepares images of 1 or 3"

    if unfit:
        folder = shlex.quote(str(path.parent))
        remedy = (
            f"record one with `resnet-core convert {folder} NAME.safetensors --resize-size PIXELS --crop-size PIXELS`"
            if channels == 3
            else "prepare images in Python and call the network that load_model returns"
        )
        return None, f"{unfit}. So no preparation of images is recorded; {remedy}"

    return ImageTransform(
        resize_size=resize_size,
        crop_size=crop_size,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        interpolation=interpolation,
    ), ""


def not_default(num_classes: int | None, in_channels: int, **others: Any) -> dict[str, Any]:
    """A builder's arguments without those that are its defaults; 0 classes are a network without a head."""
    others = {key: value for key, value in others.items() if value}
    classes = {} if num_classes in (None, 0, 1000) else {"num_classes": num_classes}
    return classes | ({} if in_channels == 3 else {"in_channels": in_channels}) | others


def read_names(values: Values, key: str, classes: int | None) -> tuple[str, ...] | None:
    """The classes' names from a list, or from names by number. A class that is left out is called by its number."""
    labels = values.get(key, rules.LABELS, {})
    if not labels:
        return None
    if isinstance(labels, list):
        labels = {str(number): name for number, name in enumerate(labels)}
    number = classes or len(labels)
    strangers = [label for label in labels if not (label.isdecimal() and len(label) < 8 and int(label) < number)]
    if strangers:
        raise WeightsError(
            f"{values.path} has {values.within}{key} with names for {shortened(strangers)}, and its classes are 0 to "
            f"{number - 1}; correct the file, or download it again"
        )
    by_number = {int(label): name for label, name in labels.items()}
    return tuple(by_number.get(each, str(each)) for each in range(number))
