"""The classifier as MosaicML Composer's `Trainer` needs it. Imported on first use, if Composer is installed."""

from __future__ import annotations

from composer.models import ComposerModel

from resnet_core.classifier.classifier import Classifier


class ComposerClassifier(Classifier, ComposerModel):
    """A `Classifier` that is a `ComposerModel`."""
