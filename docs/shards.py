"""Images in LitData's shards, in a folder or in a bucket, as a part of a `Dataset`: see docs/data.md."""

import io
from pathlib import Path

import torch
from litdata import StreamingDataset, optimize
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor


def write_shards(folder, shards):
    """The files of class folders, as they are, in shards of 64 MB; returns their class numbers."""
    classes = sorted(folder.iterdir())
    paths = [path for each in classes for path in sorted(each.iterdir())]
    optimize(Path.read_bytes, paths, output_dir=str(shards), chunk_bytes="64MB")
    return torch.tensor([classes.index(path.parent) for path in paths])


class Shards:
    def __init__(self, shards, labels):
        self.stream, self.labels = StreamingDataset(str(shards)), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.open(io.BytesIO(self.stream[int(index)])).convert("RGB")
        return pil_to_tensor(image), int(self.labels[index])

    def take(self, indices):
        return [self[index][0] for index in indices]
