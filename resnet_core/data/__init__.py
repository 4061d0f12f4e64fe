"""Images on their way to the network: datasets, transforms, order, batches."""

from resnet_core.data.datasets import DATASETS, Dataset, Split, load_digits
from resnet_core.data.loaders import EvalLoader, TrainLoader

__all__ = ["DATASETS", "Dataset", "EvalLoader", "Split", "TrainLoader", "load_digits"]
