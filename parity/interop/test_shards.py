"""docs/shards.py: a dataset over LitData's shards gives the batches of the files that it was written from."""

import importlib.util
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_core.data import DataConfig, load_dataset, loaders_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_program():
    shown = textwrap.indent((DOCS / "shards.py").read_text().partition('"""\n\n')[2], "    ", str.strip)
    assert shown in (DOCS / "data.md").read_text()


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_batches_from_shards_are_those_of_the_files(tmp_path, monkeypatch):
    pytest.importorskip("litdata")
    spec = importlib.util.spec_from_file_location("shards", DOCS / "shards.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)

    for part, name, number in np.ndindex(2, 2, 6):
        path = tmp_path / "flowers" / ("train", "val")[part] / ("rose", "tulip")[name] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng((part, name, number)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    labels = program.write_shards(tmp_path / "flowers" / "train", tmp_path / "shards")

    of_files = load_dataset("image_folder", str(tmp_path / "flowers"))
    of_shards = replace(of_files, train=program.Shards(tmp_path / "shards", labels))
    config = DataConfig(name="image_folder", path="flowers", global_batch=4, random_resized_crop=0.3, train_size=16)
    for workers in (0, 2):
        epochs = []
        for dataset in (of_files, of_shards):
            loader, _ = loaders_of(replace(config, workers=workers), dataset, epochs=1, seed=0)
            epochs.append(list(loader.epoch(0)))
        assert len(epochs[0]) == 3
        assert all(torch.equal(*pair) for batches in zip(*epochs, strict=True) for pair in zip(*batches, strict=True))
