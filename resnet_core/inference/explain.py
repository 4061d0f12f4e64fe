"""Where in an image a network sees a class: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from resnet_core.data.images import read_image
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.inference.predict import Guess, guesses_of

COLOURS = "inferno"
OPACITY = 0.5


@dataclass(frozen=True)
class Explanation:
    """A class of an image, and where the network sees it."""

    guess: Guess
    pixels: Tensor
    """The image as the network got it, `[C, H, W]` in 0..1."""
    heat: Tensor
    """How much each place speaks for the class, `[H, W]` in 0..1; 1 is the most in this image. All 0: nothing does."""


def explain(
    model: nn.Module,
    transform: ImageTransform,
    image: str | Path,
    class_names: Sequence[str] | None = None,
    class_: str | None = None,
) -> Explanation:
    """The heat map of the image's most likely class, or of the class with the name or number `class_`.

    Raises ImageError for a file that is not a whole image, and ValueError for a class that the network does not have
    and without captum (the extra `explain`).
    """
    inputs = transform(read_image(image, transform.bits))[None]
    with torch.inference_mode():
        logits = model(inputs)
    (guesses,) = guesses_of(logits, class_names, logits.shape[1])
    index = guesses[0].index if class_ is None else class_number(class_, class_names or (), logits.shape[1])
    (guess,) = [guess for guess in guesses if guess.index == index]
    (heat,) = heat_maps(model, inputs, [index])
    return Explanation(guess, denormalized(inputs[0], transform), heat)


def class_number(class_: str, class_names: Sequence[str], num_classes: int) -> int:
    """The number of a class that is given by its name or by its number."""
    if class_ in class_names:
        return class_names.index(class_)
    if class_.isdecimal() and int(class_) < num_classes:
        return int(class_)
    remedy = did_you_mean(class_, class_names) if class_names else f"give a number from 0 to {num_classes - 1}"
    raise ValueError(f"the network has no class {class_!r}; {remedy}")


def heat_maps(model: nn.Module, inputs: Tensor, classes: list[int]) -> Tensor:
    """For each input `[N, C, H, W]` the Grad-CAM of its class in the last stage, `[N, H, W]`, the highest value 1."""
    attr = captum_attr()
    last_stage = [module for name, module in model.named_children() if name.startswith("layer")][-1]
    maps = attr.LayerGradCam(model, last_stage).attribute(inputs, target=classes, relu_attributions=True)
    maps = attr.LayerAttribution.interpolate(maps.detach(), tuple(inputs.shape[2:]), "bilinear")[:, 0]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0)


def captum_attr() -> ModuleType:
    """captum's attributions. Raises ValueError without captum."""
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise ValueError("heat maps need captum: pip install 'resnet-core[explain]'") from error
    return attr


def denormalized(pixels: Tensor, transform: ImageTransform) -> Tensor:
    """What `transform` normalised, `[C, H, W]` in 0..1 again."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    return (pixels * std + mean).clamp(0, 1)


def overlaid(pixels: Tensor, heat: Tensor) -> Tensor:
    """The image in grey under its heat map in colours, `[H, W, 3]` in 0..1."""
    from matplotlib import colormaps

    grey = pixels.mean(0)[..., None]
    colours = torch.from_numpy(colormaps[COLOURS](heat.numpy()))[..., :3]
    return grey * (1 - OPACITY) + colours * OPACITY


def as_png(explanation: Explanation) -> bytes:
    """A picture: the image beside its heat map, above them the class and its probability."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    image = explanation.pixels.permute(1, 2, 0).expand(-1, -1, 3)
    guess = explanation.guess
    with rc_context({"text.parse_math": False}):  # a class may be called "$x$"
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        figure.suptitle(f"{guess.name or f'class {guess.index}'}  {guess.probability:.1%}")
        for axes, picture in zip(
            figure.subplots(1, 2), (image, overlaid(explanation.pixels, explanation.heat)), strict=True
        ):
            axes.imshow(picture.clamp(0, 1).numpy(), interpolation="nearest")
            axes.axis("off")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
