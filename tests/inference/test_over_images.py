"""`predict --out` and `embed`: many image files, with workers and with several processes."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.data.images import ImageError, read_image
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.predict import embed_files, predict_files
from resnet_core.weights import WeightsInfo, write_weights
from tests.conftest import call

TRANSFORM = ImageTransform(resize_size=32, crop_size=32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights with the classes "class 0" to "class 6"."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    info = WeightsInfo(
        model="cifar_resnet20",
        config={"num_classes": 7},
        transform=TRANSFORM,
        class_names=tuple(f"class {number}" for number in range(7)),
    )
    write_weights(path, resnet_core.cifar_resnet20(num_classes=7).state_dict(), info)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven photographs of several sizes, of which the third is cut short, in two folders."""
    folder = tmp_path_factory.mktemp("photographs")
    numbers = np.random.default_rng(0)
    for number in range(7):
        path = folder / ("a", "b")[number % 2] / f'{number}, "so".png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (40 + number, 50, 3), np.uint8)).save(path)
    damaged = folder / "a" / '2, "so".png'
    damaged.write_bytes(damaged.read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def expected(weights, folder):
    """Each readable image -> its logits and features, computed one by one."""
    model = resnet_core.cifar_resnet20(weights=weights).eval()
    found = {}
    for path in sorted(folder.rglob("*.png")):
        if path.name.startswith("2"):
            continue
        with torch.no_grad():
            logits = model(TRANSFORM(read_image(path))[None])[0]
            model.fc, head = torch.nn.Identity(), model.fc
            features = model(TRANSFORM(read_image(path))[None])[0]
            model.fc = head
        found[str(path)] = logits, features
    assert len(found) == 6
    return found


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def check_predictions(rows, expected, folder):
    assert [row["image"] for row in rows] == sorted(map(str, folder.rglob("*.png")))
    for row in rows:
        if row["image"] not in expected:
            assert "is not a whole image" in row["error"]
            assert row["class"] == row["probability"] == ""
            continue
        probabilities = expected[row["image"]][0].softmax(0)
        best = probabilities.topk(3)
        assert [row["class"], row["class2"], row["class3"]] == [f"class {index}" for index in best.indices]
        assert float(row["probability3"]) == pytest.approx(float(best.values[2]), abs=1e-5)
        assert row["error"] == ""


@pytest.mark.parametrize(("batch", "workers"), [(32, 0), (2, 2)])
def test_predictions_are_written_in_the_order_of_the_files(weights, folder, expected, cli, tmp_path, batch, workers):
    out = tmp_path / "predictions.csv"
    finished = cli("predict", weights, folder, "--out", out, "--top", 3, "--batch", batch, "--workers", workers)
    assert finished.returncode == 1
    assert finished.stdout == f"{out}: 6 of 7 images\n"
    assert '2, "so".png is not a whole image' in finished.stderr
    check_predictions(rows_of(out), expected, folder)


def test_processes_under_torchrun_share_the_files_out(weights, folder, expected, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out = tmp_path / "predictions.csv"
    words = ("-m", "resnet_core", "predict", weights, folder, "--out", out, "--top", 3, "--batch", 2, "--workers", 0)
    finished = call(*words, under=torchrun)
    assert finished.stdout == f"{out}: 6 of 7 images\n", finished.stderr
    check_predictions(rows_of(out), expected, folder)


def test_features_are_the_heads_input_with_the_names_beside(weights, folder, expected, cli, tmp_path):
    finished = cli("embed", weights, folder, "--out", tmp_path / "features.npy", "--batch", 4)
    assert finished.returncode == 1
    names = [row["image"] for row in rows_of(tmp_path / "features.csv")]
    features = np.load(tmp_path / "features.npy")
    assert names == list(expected)
    assert features.dtype == np.float32
    for name, row in zip(names, features, strict=True):
        assert np.allclose(row, expected[name][1], atol=1e-5)


def test_in_python_an_image_that_cannot_be_read_is_an_error_in_its_place(weights, folder):
    model = resnet_core.cifar_resnet20(weights=weights).eval()
    files = sorted((folder / "a").iterdir())
    for found in (predict_files(model, TRANSFORM, files, batch=2), embed_files(model, TRANSFORM, files, batch=1)):
        assert [isinstance(each, ImageError) for each in found] == [False, True, False, False]
    assert not model.fc._forward_pre_hooks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--out", "here.txt"], r"here.txt must end in .csv; name it here.csv"),
        (["predict", "--out", "there/here.csv"], "there is not a folder; create it, or choose another place"),
        (["embed", "--out", "here.csv"], "here.csv must end in .npy; name it here.npy"),
        (["embed", "--out", "old.npy"], "old.csv exists; remove it or choose another name"),
        (["embed"], "embed needs --out"),
        (["predict", "--batch", "0"], "--batch must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(words, message, weights, folder, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.csv").touch()
    finished = cli(words[0], weights, folder, *words[1:])
    assert finished.returncode == 2
    assert message in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
