"""Models in Hugging Face Hub's form: a folder of `config.json` and `model.safetensors`. Needs the extra `hub`."""

from __future__ import annotations

from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.backbone import Backbone
from resnet_core.models.registry import MODELS, constructor_config
from resnet_core.models.resnet import TABLE_1, WIDER
from resnet_core.weights import WeightsError, load_weights
from resnet_core.weights.pretrained import check_config


class HubResNet(  # type: ignore[call-arg]
    Backbone, PyTorchModelHubMixin, library_name="resnet_core", tags=["resnet", "image-classification"]
):
    """One of the ten by its name, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    `HubResNet("resnet50", num_classes=10).save_pretrained(folder)` and `HubResNet.from_pretrained(folder)`: its
    `config.json` holds the arguments, which must be plain values, its `model.safetensors` the weights as
    `resnet50(weights=...)` reads them.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        if name not in (*TABLE_1, *WIDER):
            raise ValueError(f"unknown model {name!r}; {did_you_mean(name, (*TABLE_1, *WIDER))}")
        if "norm_layer" in arguments:
            raise ValueError(
                "HubResNet takes no norm_layer: config.json cannot hold it; use a builder and write_weights"
            )
        check_config(arguments, "config.json")
        super().__init__(*MODELS[name].arguments, **constructor_config(name, arguments))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As `Backbone`'s, and `save_pretrained` then saves the new number of classes, which must be at least 1."""
        check_config({"num_classes": num_classes}, "HubResNet")
        super().reset_classifier(num_classes, global_pool)
        self._hub_mixin_config = {**self._hub_mixin_config, "num_classes": num_classes}  # type: ignore[has-type]

    @classmethod
    def _load_as_safetensor(cls, model: HubResNet, model_file: str, map_location: str, strict: bool) -> HubResNet:
        # Always strict: by default the mixin silently leaves out what does not fit.
        load_weights(model, model_file)
        return model.to(map_location)

    @classmethod
    def _load_as_pickle(cls, model: HubResNet, model_file: str, map_location: str, strict: bool) -> HubResNet:
        raise WeightsError(f"{model_file} is a pickle; convert it to model.safetensors first: resnet-core convert")
