"""Exported files in use: `predict`, `evaluate` and `embed` take them, and what they cannot do is refused by name."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.export import ExportError, export, find_exporter
from resnet_core.inference.formats import EXPORTERS, InBfloat16, format_of
from resnet_core.inference.networks import load_network
from resnet_core.models.cifar import CifarResNet
from resnet_core.weights import WeightsInfo, load_model

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INFO = WeightsInfo(
    model="cifar_resnet20", config={"num_classes": 3}, transform=ImageTransform(resize_size=32, crop_size=32)
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet_core.cifar_resnet20(num_classes=3)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    return path


FILES = [
    ("torch-export", "float32", ()),
    *(
        pytest.param(format, precision, words, marks=pytest.mark.interop)
        for format, precision, words in (
            ("aoti", "bfloat16", ()),
            ("onnx", "float32", ()),
            ("onnx", "int8", ("--calibration", 64)),
            ("openvino", "float32", ()),
            ("openvino", "bfloat16", ()),
            ("openvino", "int8", ("--calibration", 64)),
        )
    ),
]


@pytest.mark.parametrize(("format", "precision", "words"), FILES)
def test_an_exported_file_predicts_evaluates_and_embeds(digits_run, cli, tmp_path, picture, format, precision, words):
    run, out = digits_run[0], tmp_path / f"digits{EXPORTERS[format].suffix}"
    written = cli("export", run, out, "--format", format, "--precision", precision, *words)
    assert written.returncode == 0, written.stderr
    assert format_of(out) == format

    scores = cli("evaluate", out, "--dataset", "digits")
    right = int(re.search(r"\((\d+) of 360\)", scores.stdout)[1])
    assert abs(right - int(re.search(r"\((\d+) of 360\)", cli("evaluate", run).stdout)[1])) <= 1
    if precision == "float32":
        assert cli("predict", out, picture).stdout == cli("predict", run, picture).stdout

    embedded = cli("embed", out, picture, "--out", tmp_path / "file.npy")
    if format == "aoti":
        assert embedded.returncode == 2
        assert "is compiled, and gives logits only; embed with the weights" in embedded.stderr
        return
    assert cli("embed", run, picture, "--out", tmp_path / "run.npy").returncode == 0
    found, expected = np.load(tmp_path / "file.npy"), np.load(tmp_path / "run.npy")
    least = {"float32": 1 - 1e-6, "bfloat16": 0.999, "int8": 0.9}[precision]
    assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > least


def test_an_exported_file_is_not_explained(network, cli, tmp_path, picture):
    export(network, tmp_path / "x.pt2", format="torch-export", image_size=32, info=INFO)
    refused = cli("explain", tmp_path / "x.pt2", picture, "--out", tmp_path / "heat")
    assert refused.returncode == 2
    assert "x.pt2 only predicts, and has no gradients" in refused.stderr


@pytest.mark.parametrize(
    ("info", "size", "message"),
    [
        (None, 32, "does not say what network it holds; `resnet-core export` writes files that do"),
        (INFO, 16, r"does not run on images as it says to prepare them \(.*\); export it again, without --image-size"),
        (
            WeightsInfo(model="cifar_resnet20", transform=INFO.transform),
            32,
            "has other classes than it says; export it again",
        ),
    ],
)
def test_a_file_that_does_not_fit_what_it_says_is_refused(network, info, size, message, tmp_path):
    export(network, tmp_path / "x.pt2", format="torch-export", image_size=size, info=info)
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "x.pt2")


def test_a_file_whose_library_is_missing_is_refused_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "x.xml").touch()
    monkeypatch.setattr("resnet_core.inference.formats.find_spec", lambda name: None)
    message = r"format openvino, which needs nncf, openvino: pip install 'resnet-core\[openvino\]'"
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "x.xml")
    with pytest.raises(ExportError, match=r"needs nncf, openvino: pip install 'resnet-core\[openvino\]'"):
        find_exporter(tmp_path / "y.xml", "openvino")


@pytest.mark.parametrize("content", [b"", b"PK"])
def test_other_files_of_the_same_ending_are_no_exported_files(content, tmp_path):
    (tmp_path / "x.pt2").write_bytes(content)
    assert format_of(tmp_path / "x.pt2") is None
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "y.pt2")
    assert format_of(tmp_path / "y.pt2") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onnx", "precision": "bfloat16"}, "for bfloat16 choose --format openvino or aoti"),
        ({"format": "aoti", "precision": "int8"}, "for int8 choose --format onnx or openvino"),
        ({"format": "torch-export", "precision": "float16"}, "got 'float16'; choose one of these"),
        ({"format": "torch-export", "calibration": [IMAGES]}, "precision int8, and no other, takes calibration"),
    ],
)
def test_precisions_that_do_not_fit_are_named_with_the_remedy(network, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(network, tmp_path / "x.pt2", **arguments)
    assert list(tmp_path.iterdir()) == []


def int8(network, tmp_path, monkeypatch, run, **options):
    """What `export` says of an int8 file that computes what `run` does."""
    exporter = EXPORTERS["torch-export"]
    replaced = type(exporter)(
        **vars(exporter) | {"precisions": ("int8",), "write": lambda _, file: file.touch(), "load": lambda _: run}
    )
    monkeypatch.setitem(EXPORTERS, "torch-export", replaced)
    return export(network, tmp_path / "x.pt2", format="torch-export", precision="int8", image_size=32, **options)


def test_int8_is_checked_on_the_images_that_it_was_calibrated_with(network, tmp_path, monkeypatch):
    plain = network.eval()
    near = int8(network, tmp_path, monkeypatch, lambda images: 1.1 * plain(images), calibration=[IMAGES])
    assert near.allowed_error == 0.25 * near.largest_logit
    assert str(near).startswith(f"{tmp_path / 'x.pt2'}: torch-export in int8, ")
    (tmp_path / "x.pt2").unlink()
    with pytest.raises(ExportError, match="computes something else"):
        int8(network, tmp_path, monkeypatch, lambda images: 1.4 * plain(images), calibration=[IMAGES])
    with pytest.raises(ValueError, match="int8, and no other, takes calibration"):
        int8(network, tmp_path, monkeypatch, plain)
    with pytest.raises(ValueError, match="int8 is calibrated for one image size; leave dynamic_size out"):
        int8(network, tmp_path, monkeypatch, plain, calibration=[IMAGES], dynamic_size=True)


def test_a_network_in_bfloat16_takes_and_gives_float32():
    network = CifarResNet(1).eval()
    logits = InBfloat16(network)(IMAGES)
    assert logits.dtype == torch.float32
    assert next(network.parameters()).dtype == torch.float32
    assert torch.equal(logits, network.bfloat16()(IMAGES.bfloat16()).float())


def test_weights_are_loaded_as_before(digits_run):
    assert type(load_network(digits_run[0])[0]) is type(load_model(digits_run[0])[0])
