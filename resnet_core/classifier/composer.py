"""The classifier as MosaicML Composer's `Trainer` demands it. Imported where Composer is installed, on first use."""

from __future__ import annotations

from composer.models import ComposerModel

from resnet_core.classifier.classifier import Classifier


class ComposerClassifier(Classifier, ComposerModel):
    """A `Classifier` that is a `ComposerModel`."""
