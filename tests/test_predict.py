"""Images in, classes out: from a run, a file of weights, and with files that are no images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.data import load_digits
from resnet_core.data.transforms import ImageTransform
from resnet_core.models import load_model
from resnet_core.predict import ImageError, find_images, predict, read_image
from resnet_core.weights import WeightsInfo, write_weights


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
        difference = dataset.transform(read_image(path)) - dataset.test.images[number]
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
    assert "no such file" in errors[2]
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run/", "x.png"], "no-such-run"),
        (["vgg16", "x.png"], "'vgg16' is neither a run's folder, nor a file of weights"),
        (["cifar_resnet20", "x.png"], "cifar_resnet20"),
        (["resnet50:IMAGENET1K_V3", "x.png"], "IMAGENET1K_V"),
        (["resnet50"], "predict needs an image"),
        (["resnet50", "docs"], "no image in this folder"),
        (["resnet50", "x.png", "--top", "0"], "--top must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(cli, arguments, message):
    finished = cli("predict", *arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1 or "--top" in message  # tyro tells its own in a frame


def test_folders_are_searched_at_any_depth(tmp_path):
    for name in ("b.jpg", "deep/a.PNG", "deep/notes.txt", "c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images([tmp_path])] == ["b.jpg", "c.jpeg", "a.PNG"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="no image in this folder"):
        list(find_images([empty]))


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


def test_a_file_that_says_nothing_needs_the_models_name(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, resnet_core.resnet18(num_classes=4).state_dict())
    with pytest.raises(ValueError, match=r"does not say of which model.*--model"):
        load_model(path)
    model, info = load_model(path, model="resnet18")
    assert model.fc.out_features == 4
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
        ({"resize_size": 10, "crop_size": 11}, "crop_size must be 1 to resize_size"),
        ({"resize_size": 10, "crop_size": 10, "mean": (0.5, 0.5), "std": (1, 1)}, "1 value .grey. or 3"),
        ({"resize_size": 10, "crop_size": 10, "mean": (0.5,)}, "1 value .grey. or 3"),
    ],
)
def test_impossible_transforms_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(**values)
