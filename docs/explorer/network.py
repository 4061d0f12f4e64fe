"""Takes a finished run for the explorer: `python docs/explorer/network.py runs/fashion FASHION_MNIST_FOLDER`.

Writes beside itself `network.safetensors` (the run's weights in float16), `images.png` (the first ten test images of
each class, a class in each row) and `network.json` (what the page says about them).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from resnet_core.data import Dataset, load_fashion_mnist
from resnet_core.weights import load_model, read_info, read_weights, write_weights

HERE = Path(__file__).parent
PER_CLASS = 10


def take(run: Path, data: Path) -> None:
    source = run / "model.safetensors"
    weights = read_weights(source)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    write_weights(HERE / "network.safetensors", halves, read_info(source))

    dataset = load_fashion_mnist(data)
    shown = first_of_each_class(dataset)
    images = dataset.test.images[shown, 0].numpy()
    Image.fromarray(sheet(images)).save(HERE / "images.png", optimize=True)

    model, _ = load_model(HERE / "network.safetensors")
    is_right = correct(model.eval(), dataset)
    facts = {
        "top1_of_run": json.loads((run / "result.json").read_text())["top1"],
        "top1": is_right.double().mean().item(),
        "count": len(is_right),
        "shown_right": int(is_right[shown].sum()),
    }
    (HERE / "network.json").write_text(json.dumps(facts, indent=2) + "\n")


def first_of_each_class(dataset: Dataset) -> list[int]:
    labels = torch.as_tensor(dataset.test.labels)
    of_each = [(labels == label).nonzero().flatten()[:PER_CLASS] for label in range(len(dataset.class_names))]
    return torch.cat(of_each).tolist()


def sheet(images: np.ndarray) -> np.ndarray:
    """`[rows * columns, H, W]` images as one, `PER_CLASS` in each row."""
    rows = [np.hstack(images[first : first + PER_CLASS]) for first in range(0, len(images), PER_CLASS)]
    return np.vstack(rows)


def correct(model: nn.Module, dataset: Dataset) -> torch.Tensor:
    """For each test image whether the network names its class."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.transform.mean, dataset.transform.std))
    with torch.inference_mode():
        batches = zip(dataset.test.images.split(500), torch.as_tensor(dataset.test.labels).split(500), strict=True)
        found = [model((images / 255 - mean) / std).argmax(1) == labels for images, labels in batches]
    return torch.cat(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the finished run's folder")
    parser.add_argument("data", type=Path, help="the folder with Fashion-MNIST's IDX files")
    take(**vars(parser.parse_args()))
