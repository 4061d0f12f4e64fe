"""Images in, classes out: from a run, a file of weights, and with files that are no images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.data import load_digits
from resnet_core.data.folders import class_folders
from resnet_core.data.images import ImageError, find_images, read_image
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.predict import predict
from resnet_core.weights import WeightsInfo, write_weights
from resnet_core.weights.pretrained import load_model


@pytest.fixture(scope="module")
def digit_images(tmp_path_factory):
    """A folder of the first 60 test digits as grey PNG files named by their label."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(resnet_core.data.datasets.__file__.replace("datasets.py", "digits.npz")) as arrays:
        pixels, labels = (arrays[key][arrays["is_test"]][:60] for key in ("images", "labels"))
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        levels = np.round(image.astype(float) * 255 / 16).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{number:02d}-is-{label}.png")
    return folder


def test_the_digits_run_reads_image_files(digits_run, digit_images, cli):
    finished = cli("predict", digits_run[0], digit_images, "--json", "--top", 3)
    assert finished.returncode == 0, finished.stderr
    records = json.loads(finished.stdout)
    assert len(records) == 60
    right = sum(f"is-{record['classes'][0]['name']}" in record["image"] for record in records)
    assert right >= 58
    assert {len(record["classes"]) for record in records} == {3}
    for record in records:
        probabilities = [guess["probability"] for guess in record["classes"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-6


def test_the_transform_of_digits_gives_nearly_the_datasets_own_pixels(digit_images):
    dataset = load_digits()
    for number, path in enumerate(sorted(digit_images.iterdir())):
        (expected,) = dataset.transform.of_images(dataset.test.take([number]))
        difference = dataset.transform(read_image(path)) - expected
        assert difference.abs().max() < 0.02  # grey levels are rounded to 8 bits, twice


def test_the_table_names_each_image_and_its_classes(digits_run, digit_images, cli):
    image = sorted(digit_images.iterdir())[0]
    finished = cli("predict", digits_run[0], image, "--top", 2)
    lines = finished.stdout.splitlines()
    assert lines[0] == str(image)
    assert len(lines) == 3
    assert lines[1].endswith(f"%  {image.stem[-1]}")


def test_a_file_that_is_no_image_is_named_and_the_others_are_done(digits_run, digit_images, cli, tmp_path):
    text, cut, absent = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "absent.png"
    text.write_text("no image")
    whole = sorted(digit_images.iterdir())[0]
    cut.write_bytes(whole.read_bytes()[:60])
    finished = cli("predict", digits_run[0], text, cut, absent, whole)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[0] == str(whole)
    errors = [line for line in finished.stderr.splitlines() if line.startswith("resnet-core: ")]
    for path, error in zip((text, cut, absent), errors, strict=True):
        assert str(path) in error
    assert "does not exist" in errors[2]
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run/", "x.png"], "no-such-run"),
        (["vgg16", "x.png"], "'vgg16' is neither a run's folder, nor a weights file"),
        (["cifar_resnet21", "x.png"], "or cifar_resnet20"),
        (["resnet50:IMAGENET1K_V3", "x.png"], "IMAGENET1K_V"),
        (["resnet50"], "predict needs an image"),
        (["resnet50", "x.png", "--top", "0"], "--top must be at least 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(cli, arguments, message):
    finished = cli("predict", *arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1 or "--top" in message  # tyro frames its own


def test_folders_are_searched_at_any_depth(tmp_path):
    for name in ("b.jpg", "deep/a.PNG", "deep/notes.txt", "c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["b.jpg", "c.jpeg", "a.PNG"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="is a folder without images"):
        find_images(empty)


def test_a_link_to_an_image_is_followed_and_one_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "there.png").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "there.png")
    assert [path.name for path in find_images(folder)] == ["a.png"]
    (folder / "b.png").symlink_to("/nowhere/b.png")
    with pytest.raises(
        ImageError, match=r"b.png is a link to /nowhere/b.png, which does not exist; mount that disk, or"
    ):
        find_images(folder)
    (folder / "b.png").rename(tmp_path / "class")
    with pytest.raises(ImageError, match=r"class is a link to /nowhere/b.png, which does not exist"):
        class_folders(tmp_path)


def test_a_camera_s_orientation_is_honoured(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its right side
    image.save(tmp_path / "phone.png", exif=exif)
    assert read_image(tmp_path / "phone.png").size == (3, 4)


def test_an_oversized_image_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_probabilities_are_the_softmax_of_the_logits(tmp_path):
    torch.manual_seed(0)
    model = resnet_core.cifar_resnet20().eval()
    transform = ImageTransform(resize_size=32, crop_size=32)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "x.png")
    logits = model(transform(read_image(tmp_path / "x.png"))[None])[0].detach()
    guesses = predict(model, transform, tmp_path / "x.png", top=20)
    assert len(guesses) == 10
    for guess in guesses:
        assert guess.probability == pytest.approx(float(logits.softmax(0)[guess.index]), rel=1e-6)


@pytest.mark.parametrize(("mode", "kept"), [("I;16", True), ("I", False), ("F", False)])
def test_deep_grey_is_scaled_or_refused(tmp_path, mode, kept):
    path = tmp_path / "deep.tiff"
    levels = np.array([[0, 257], [25700, 65535]])
    Image.fromarray(levels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])).save(path)
    if kept:
        assert np.asarray(read_image(path)).tolist() == [[0, 1], [100, 255]]
    else:
        with pytest.raises(ImageError, match="32 bits per channel"):
            read_image(path)


def test_no_program_outside_is_called_for_an_image(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "photo.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match=r"photo\.png is not a whole image"):
        read_image(tmp_path / "photo.png")
    assert not (tmp_path / "called").exists()


def test_a_thin_image_is_refused_before_it_grows(tmp_path):
    Image.fromarray(np.zeros((1, 600), np.uint8)).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match="600 x 1 pixels, too long and thin"):
        read_image(tmp_path / "thin.png")


def test_logits_that_are_not_finite_are_no_result(tmp_path):
    model = resnet_core.cifar_resnet20().eval()
    model.bn1.running_var.fill_(-1)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="not finite"):
        predict(model, ImageTransform(resize_size=32, crop_size=32), tmp_path / "x.png")


HOSTILE_CONFIGS = [
    {"num_classes": 2**36},
    {"num_classes": 2**19},
    {"num_classes": -1},
    {"num_classes": "9"},
    {"num_classes": True},
    {"in_channels": 2**40},
    {"groups": 3},
    {"norm_layer": "x"},
    {"pretrained": True},
    {"weights": "IMAGENET1K_V1"},
    {"replace_stride_with_dilation": [1, 2, 3]},
    {"replace_stride_with_dilation": [True]},
    {"no such": 1},
]


@pytest.mark.parametrize("config", HOSTILE_CONFIGS, ids=str)
def test_what_a_file_says_of_itself_is_checked_before_a_network_is_made(tmp_path, config, monkeypatch):
    path = tmp_path / "hostile.safetensors"
    write_weights(path, resnet_core.resnet18(num_classes=9).state_dict(), WeightsInfo(model="resnet18", config=config))
    monkeypatch.setattr("resnet_core.weights.pretrained.fetch", None)
    for load in (load_model, lambda path: resnet_core.resnet18(weights=path)):
        with pytest.raises(ValueError, match=r"hostile\.safetensors|groups|3 flags"):
            load(path)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"class_names": ("a",)}, "names 1 classes, and its weights have 9"),
        ({"transform": ImageTransform(resize_size=8, crop_size=8, mean=(0.5,), std=(0.5,))}, "images of 1 channels"),
    ],
)
def test_names_and_transform_have_to_fit_the_weights(tmp_path, info, message):
    path = tmp_path / "odd.safetensors"
    info = WeightsInfo(model="resnet18", config={"num_classes": 9}, **info)
    write_weights(path, resnet_core.resnet18(num_classes=9).state_dict(), info)
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("bias", [torch.tensor(1.0), torch.zeros(3, 0)])
def test_a_head_that_is_none_is_refused(tmp_path, bias):
    path = tmp_path / "odd.safetensors"
    write_weights(path, {**resnet_core.resnet18(num_classes=9).state_dict(), "fc.bias": bias})
    for load in (lambda path: load_model(path, model="resnet18"), lambda path: resnet_core.resnet18(weights=path)):
        with pytest.raises(ValueError, match=r"fc\."):
            load(path)


def test_the_model_of_a_file_that_says_nothing_is_found_from_its_shapes(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, resnet_core.resnet18(num_classes=4).state_dict())
    model, info = load_model(path)
    assert (info.model, model.fc.out_features) == ("resnet18", 4)
    assert info.transform.crop_size == 224
    assert info.class_names is None
    with pytest.raises(ValueError, match=r"resnet34|layer"):
        load_model(path, model="resnet34")


def test_another_model_than_the_file_s_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, resnet_core.resnet18().state_dict(), WeightsInfo(model="resnet18"))
    with pytest.raises(ValueError, match="holds weights of resnet18, not resnet34"):
        load_model(path, model="resnet34")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize_size": 10, "crop_size": 11}, r"crop_size must be in 1\.\.10 pixels \(resize_size\), got 11"),
        ({"resize_size": 10, "crop_size": 10, "mean": (0.5, 0.5), "std": (1, 1)}, "1 value .grey. or 3"),
        ({"resize_size": 10, "crop_size": 10, "mean": (0.5,)}, "1 value .grey. or 3"),
    ],
)
def test_impossible_transforms_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**values)
