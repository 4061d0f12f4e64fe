"""Evaluating weights: a run's, a file's, on folders of several layouts, and classes that are not the weights'."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.cli.main import main
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.evaluate import class_numbers
from resnet_core.inference.predict import predict
from resnet_core.weights import WeightsInfo, imagenet_classes, write_weights
from resnet_core.weights.pretrained import load_model

TRANSFORM = ImageTransform(resize_size=20, crop_size=16)
IMAGES = {"bird": 1, "cat": 2, "dog": 4}  # unequal, so that classes taken for one another show


def images(folder, classes=IMAGES):
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 256, (24, 30, 3), np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that names its classes in another order than a folder has them."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    torch.manual_seed(0)
    info = WeightsInfo(
        model="cifar_resnet20",
        config={"num_classes": 3},
        transform=TRANSFORM,
        class_names=("dog", "bird", "cat"),
        origin="a test",
    )
    write_weights(path, resnet_core.cifar_resnet20(num_classes=3).state_dict(), info)
    return path


def scores_of(capsys, *words):
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("part", ["val", "test", "."])
def test_a_folder_is_evaluated_as_predict_sees_its_images_whatever_the_order_of_classes(
    weights, part, capsys, tmp_path
):
    images(tmp_path / part)
    scores = scores_of(capsys, weights, "--data", tmp_path)
    model, info = load_model(weights)
    right, loss = 0, 0.0
    for path in (tmp_path / part).rglob("*.png"):
        guesses = predict(model, info.transform, path, info.class_names, top=3)
        right += guesses[0].name == path.parent.name
        loss -= math.log(next(guess.probability for guess in guesses if guess.name == path.parent.name)) / 7
    assert (scores["count"], scores["top1"], scores["top5"]) == (7, right / 7, 1)
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)


def test_val_is_evaluated_where_there_are_images_to_train_on_beside_it(weights, capsys, tmp_path):
    images(tmp_path / "train")
    assert main(["evaluate", str(weights), "--data", str(tmp_path)]) == 2
    assert "has no folder val or test to evaluate on" in capsys.readouterr().err
    images(tmp_path / "val")
    assert scores_of(capsys, weights, "--data", tmp_path)["count"] == 7


def test_a_runs_file_of_weights_scores_what_its_training_ended_with(digits_run, capsys):
    folder, _ = digits_run
    result = json.loads((folder / "result.json").read_text())
    for words in ([folder], [folder / "model.safetensors", "--dataset", "digits"]):
        scores = scores_of(capsys, *words)
        assert scores == pytest.approx({key: result[key] for key in scores}, rel=1e-6)


def test_a_run_is_evaluated_on_another_folder(digits_run, capsys, tmp_path):
    images(tmp_path, dict.fromkeys("0123456789", 1))
    assert scores_of(capsys, digits_run[0], "--data", tmp_path)["count"] == 10


def test_what_is_evaluated_is_told_beside_the_result(weights, capsys, tmp_path):
    images(tmp_path)
    assert main(["evaluate", str(weights), "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("top-1 ")
    assert printed.err == f"cifar_resnet20, a test\nevaluation  {tmp_path}\n"


def test_some_of_the_classes_are_evaluated_by_name_and_named(weights, capsys, tmp_path):
    images(tmp_path, {"bird": 1, "dog": 4})
    assert main(["evaluate", str(weights), "--data", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["count"] == 5
    assert "classes     2 of the 3 that the weights know: bird, dog\n" in printed.err

    model, info = load_model(weights)
    right = sum(
        predict(model, info.transform, path, info.class_names, top=1)[0].name == path.parent.name
        for path in tmp_path.rglob("*.png")
    )
    assert json.loads(printed.out)["top1"] == right / 5


def test_the_test_images_are_evaluated_where_they_are_asked_for(weights, capsys, tmp_path):
    images(tmp_path / "train")
    images(tmp_path / "Validation")
    images(tmp_path / "test", {"bird": 3})
    assert main(["evaluate", str(weights), "--data", str(tmp_path)]) == 0
    assert f"evaluation  {tmp_path}/Validation; test is not read\n" in capsys.readouterr().err
    assert scores_of(capsys, weights, "--data", tmp_path, "--split", "test")["count"] == 3
    assert main(["evaluate", str(weights), "--data", str(tmp_path), "--split", "holdout"]) == 2
    assert "has no folder holdout, only test, train, val; add it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "words", "message"),
    [
        (IMAGES, ["--dataset", "cifar10"], "--dataset cifar10 is read from a folder; name it with --data DIR"),
        (IMAGES, ["--dataset", "cifar"], "--dataset: unknown dataset 'cifar'; did you mean cifar10"),
        (IMAGES, [], "does not record its test data, as a run's folder does; name it with --data DIR"),
        (IMAGES, ["--data", "nowhere"], "nowhere does not exist; name the folder of the images"),
        ({}, ["--data", "."], "has no class folders"),
        (
            {"bird": 1, "cow": 1, "dog": 1},
            ["--data", "."],
            "3 classes and the weights have 3; .*; only in the data: cow; only in the weights: cat",
        ),
        (
            dict.fromkeys(("n01440764", "n01443537", "n01484850"), 1),
            ["--data", "."],
            "only in the data: n01440764, n01443537, n01484850; only in the weights: bird, cat, dog",
        ),
    ],
)
def test_data_that_does_not_fit_the_weights_is_named_in_one_line(
    weights, classes, words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    images(tmp_path, classes)
    assert main(["evaluate", str(weights), *words]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line != "cifar_resnet20, a test")
    assert re.search(message, line), line


def test_classes_go_by_name_and_imagenets_folders_by_their_order():
    words = imagenet_classes()
    imagenet = WeightsInfo(model="resnet50", class_names=words)
    wnids = [f"n{number:08}" for number in range(1000)]
    assert class_numbers(wnids, imagenet, 1000) == list(range(1000))
    with pytest.raises(ValueError, match="the data has 10 classes and the weights have 1000"):
        class_numbers(wnids[:10], imagenet, 1000)
    with pytest.raises(
        ValueError, match=r"only in the data: n00000000, n00000001, n00000002 and 997 more; only in the weights: A"
    ):
        class_numbers(wnids, WeightsInfo(model="resnet50", class_names=("A", *words[1:])), 1000)

    own = WeightsInfo(model="resnet50", class_names=tuple(reversed(wnids)))  # of a run on folders like these
    assert class_numbers(wnids, own, 1000) == list(reversed(range(1000)))

    nameless = WeightsInfo(model="resnet18")
    assert class_numbers(["cat", "dog"], nameless, 2) == [0, 1]
    with pytest.raises(ValueError, match=r"has 2 classes and the weights have 3; they must be the same$"):
        class_numbers(["cat", "dog"], nameless, 3)


def test_weights_that_cannot_be_used_are_named(weights, capsys, tmp_path):
    images(tmp_path / "data")
    model, info = load_model(weights)
    path = tmp_path / "other.safetensors"
    write_weights(path, model.state_dict(), replace(info, transform=None))
    assert main(["evaluate", str(path), "--data", str(tmp_path / "data")]) == 2
    assert "do not record how to prepare an image for cifar_resnet20; `resnet-core convert`" in capsys.readouterr().err
    model.bn1.running_var.fill_(-1)
    write_weights(path, model.state_dict(), info)
    assert main(["evaluate", str(path), "--data", str(tmp_path / "data")]) == 2
    assert "'loss': nan" in capsys.readouterr().err


def test_weights_that_do_not_exist_are_named(capsys):
    assert main(["evaluate", "missing.safetensors"]) == 2
    assert "missing.safetensors does not exist" in capsys.readouterr().err


def test_a_checkpoint_is_named_with_what_to_give_instead(digits_run, capsys):
    checkpoint = next((digits_run[0] / "checkpoints").glob("step-*"))
    for words in (["evaluate", checkpoint], ["predict", checkpoint, "x.png"]):
        assert main([*map(str, words)]) == 2
        assert (
            "is a checkpoint, from which `resnet-core train` continues; give the run's folder"
            in capsys.readouterr().err
        )
