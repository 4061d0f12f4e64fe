"""Named experiments: a model, its data and how it is trained."""

from resnet_core.recipes.catalog import RECIPES, SOURCES, get_recipe
from resnet_core.recipes.experiment import make_loaders, make_model, make_trainer
from resnet_core.recipes.losses import LossConfig
from resnet_core.recipes.recipe import ModelConfig, Recipe, overlay

__all__ = [
    "RECIPES",
    "SOURCES",
    "LossConfig",
    "ModelConfig",
    "Recipe",
    "get_recipe",
    "make_loaders",
    "make_model",
    "make_trainer",
    "overlay",
]
