"""What a weights file says about itself, as JSON in its safetensors header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.errors import first_line
from resnet_core.weights.header import WeightsError

KEY = "resnet_core"


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """The model that weights belong to, how to prepare an image for it, and what its classes are called."""

    model: str
    """A name of `list_models()`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of its builder that are not the defaults, such as `num_classes`."""
    transform: ImageTransform | None = None
    class_names: tuple[str, ...] | None = None
    origin: str = ""
    """Where the weights come from, in words."""
    ranges: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Of a network in int8: value -> the step between its numbers, and the number that stands for 0."""

    @property
    def image_size(self) -> int:
        """Height and width of the images that the network is evaluated on, or else usually sees."""
        if self.transform is not None:
            return self.transform.crop_size
        return 32 if self.model.startswith("cifar_") or self.config.get("small_images") else 224

    def to_metadata(self) -> dict[str, str]:
        """The form in which safetensors stores it: text under text keys."""
        values = asdict(self)
        if self.transform is not None:  # files of earlier versions lack these: their defaults are left out
            values["transform"] = {
                key: value
                for key, value in values["transform"].items()
                if (key, value) not in (("interpolation", "bilinear"), ("bits", 0))
            }
        if not self.ranges:
            del values["ranges"]
        return {"format": "pt", KEY: json.dumps(values)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str = "the file") -> WeightsInfo | None:
        """The inverse of `to_metadata`; None where there is none. Raises WeightsError for one that cannot be read."""
        if KEY not in metadata:
            return None
        try:
            values = json.loads(metadata[KEY])
            transform, names = values.pop("transform"), values.pop("class_names")
            if transform is not None:
                transform = ImageTransform(**{key: frozen(value) for key, value in transform.items()})
            ranges = {name: (float(step), int(zero)) for name, (step, zero) in values.pop("ranges", {}).items()}
            info = cls(**values, transform=transform, class_names=frozen(names), ranges=ranges)
            if not (isinstance(info.model, str) and isinstance(info.config, dict) and isinstance(info.origin, str)):
                raise TypeError("model and origin must be text, and config an object")
            return info
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = first_line(error)
            raise WeightsError(
                f"{origin} has metadata {KEY!r} that cannot be read ({reason}); write it again"
            ) from error


def frozen(value: Any) -> Any:
    """JSON's list as the tuple that it was before."""
    return tuple(value) if isinstance(value, list) else value
